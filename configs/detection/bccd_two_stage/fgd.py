# The student of the two-stage BCCD table, distilled by FGD (Yang et al., CVPR 2022).
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(pairs=[{{_base_.fgd}}])
