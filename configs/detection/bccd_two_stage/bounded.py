# The student of the two-stage BCCD table, distilled by the bounded boxes of Chen et al. (NeurIPS
# 2017) alone.
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(pairs=[{{_base_.rpn_box}}, {{_base_.roi_box}}])
