# The student by SoLAD (Nguyen et al., WACV 2022): labels that the teacher assigns, and its scores
# as soft labels. The teacher comes first:
#   python tools/train.py configs/detection/digits_lad/teacher.py \
#       --work-dir work_dirs/demo/digits_lad/teacher
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/detection/digits_lad/teacher.py",
        checkpoint="work_dirs/demo/digits_lad/teacher/epoch_10.pth",
    ),
    assignment=dict(scheme="own"),
    pairs=[
        dict(
            student="outputs.cls",
            loss="FocalKLDivergence",
            gamma=0.5,
            region="all",
            weight=1.0,
            name="soft",
        ),
    ],
)
