# The student of the two-stage BCCD table, distilled by the whole recipe of Chen et al.
# (NeurIPS 2017).
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(
    task_weights={{_base_.mu}},
    pairs=[
        {{_base_.hint}},
        {{_base_.rpn_cls}},
        {{_base_.rpn_box}},
        {{_base_.roi_cls}},
        {{_base_.roi_box}},
    ],
)
