# The demo's student, distilled: its own config and what it learns from the teacher.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/detection/demo/teacher.py",
        checkpoint="work_dirs/demo/detection/teacher/epoch_10.pth",
    ),
    pairs=[
        # Pearson-type imitation of the pyramid: what a channel says where, not how loudly.
        dict(student="neck", loss="FeatureImitation", normalize="channel", weight=3.0, name="neck"),
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="teacher_score",
            weight=1.0,
            name="cls",
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=2.0,
            region="main_score",
            weight=0.25,
            name="ld",
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=2.0,
            region="vlr_iou",
            weight=0.1,
            name="ld_vlr",
        ),
    ],
)
