# The student of the BCCD table, by localization distillation (Zheng et al., CVPR 2022).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.ld}}])
