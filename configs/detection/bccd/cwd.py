# The student of the BCCD table, by channel-wise distillation (Shu et al., ICCV 2021).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.cwd}}])
