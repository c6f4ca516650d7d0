# The student, learning the classes and boxes of the queries that find the same objects, and the
# encoder's memory. The teacher comes first:
#   python tools/train.py configs/detection/digits_dino/teacher.py \
#       --work-dir work_dirs/demo/digits_dino/teacher
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/detection/digits_dino/teacher.py",
        checkpoint="work_dirs/demo/digits_dino/teacher/epoch_10.pth",
    ),
    pairs=[
        dict(
            student="outputs.cls[-1]",
            loss="KLDivergence",
            activation="sigmoid",
            weight=1.0,
            name="cls",
        ),
        dict(student="outputs.box[-1]", loss="BoundedRegression", weight=5.0, name="box"),
        dict(student="encoder", loss="FeatureImitation", weight=1.0, name="encoder"),
    ],
)
