# The student of the two-stage BCCD table, distilled by the soft classes of Chen et al. (NeurIPS
# 2017) alone.
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(task_weights={{_base_.mu}}, pairs=[{{_base_.rpn_cls}}, {{_base_.roi_cls}}])
