# The demo's student, distilled: pixels, pairs of places, and what the channels of the deeper maps
# say where, which tells one digit from another long before the labels do.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/segmentation/demo/teacher.py",
        checkpoint="work_dirs/demo/segmentation/teacher/epoch_12.pth",
    ),
    pairs=[
        dict(student="backbone[0:3]", loss="PearsonDistance", weight=6.0, name="features"),
        dict(
            student="outputs.logits",
            loss="PixelWise",
            divergence="teacher_student",
            weight=3.0,
            name="pixel",
        ),
        # A U-Net has no bottleneck: the last map before its classifier.
        dict(
            student="decode_head.convs",
            loss="PairWise",
            patch=0.5,
            pooling="max",
            weight=1.0,
            name="pair",
        ),
    ],
)
