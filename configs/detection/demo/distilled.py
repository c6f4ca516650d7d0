# The demo's student, distilled: its own config and what it learns from the teacher.
_base_ = ["student.py", "../_base_/gfl_pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/detection/demo/teacher.py",
        checkpoint="work_dirs/demo/detection/teacher/epoch_10.pth",
    ),
)
