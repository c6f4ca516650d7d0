# The student, learning the teacher's scores and the patterns of its pyramid. The teacher comes
# first:
#   python tools/train.py configs/detection/digits_rtmdet/teacher.py \
#       --work-dir work_dirs/demo/digits_rtmdet/teacher
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/detection/digits_rtmdet/teacher.py",
        checkpoint="work_dirs/demo/digits_rtmdet/teacher/epoch_10.pth",
    ),
    pairs=[
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="teacher_score",
            weight=1.0,
            name="cls",
        ),
        dict(student="neck", loss="PearsonDistance", weight=6.0, name="neck"),
    ],
)
