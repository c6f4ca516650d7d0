# The student, distilled by the whole recipe of Chen et al., NeurIPS 2017. The teacher comes first:
#   python tools/train.py configs/detection/digits_two_stage/teacher.py \
#       --work-dir work_dirs/demo/digits_two_stage/teacher
_base_ = ["student.py", "../_base_/chen2017_two_stage_pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/detection/digits_two_stage/teacher.py",
        checkpoint="work_dirs/demo/digits_two_stage/teacher/epoch_10.pth",
    ),
)
