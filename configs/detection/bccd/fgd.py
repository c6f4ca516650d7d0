# The student of the BCCD table, by focal and global distillation (Yang et al., CVPR 2022).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.fgd}}])
