# The demo's student, distilled: pixel-wise, pair-wise and holistic.
_base_ = ["student.py", "../_base_/pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/segmentation/demo/teacher.py",
        checkpoint="work_dirs/demo/segmentation/teacher/epoch_12.pth",
    ),
    pairs=[
        {{_base_.pixel_wise}},
        # A U-Net has no bottleneck: the last map before its classifier.
        dict(
            student="decode_head.convs",
            loss="PairWise",
            patch=0.5,
            pooling="max",
            weight=1.0,
            name="pair",
        ),
        {{_base_.holistic}},
    ],
)
