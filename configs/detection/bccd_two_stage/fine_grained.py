# The student of the two-stage BCCD table, distilled by fine-grained imitation (Wang et al., CVPR
# 2019).
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(pairs=[{{_base_.fine_grained}}])
