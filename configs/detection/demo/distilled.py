# The demo's student, distilled: the student's own config and what it learns from the teacher.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/detection/demo/teacher.py",
        checkpoint="work_dirs/demo/detection/teacher/epoch_12.pth",
    ),
    pairs=[
        dict(student="neck", loss="FeatureImitation", weight=1.0, name="neck"),
        dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="teacher_score", weight=1.0, name="cls"),
        dict(student="outputs.box_bins", loss="LocalizationDistillation", temperature=3.0, region="main_score", weight=1.0, name="ld"),
        dict(student="outputs.box_bins", loss="LocalizationDistillation", temperature=3.0, region="vlr_iou", weight=0.5, name="ld_vlr"),
    ],
)
