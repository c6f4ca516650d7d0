# The student of the BCCD table, imitating the pyramid near the boxes (Wang et al., CVPR 2019).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.fine_grained}}])
