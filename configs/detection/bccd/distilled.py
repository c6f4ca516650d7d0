# The student of the BCCD table, distilled: its own config and what it learns from the teacher.
_base_ = ["student.py", "../_base_/gfl_pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/detection/bccd/teacher.py",
        checkpoint="work_dirs/demo/bccd/teacher/epoch_16.pth",
    ),
)
