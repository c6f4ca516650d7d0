# The methods of the BCCD table, one by one. Weights are such that a term is a few tenths of the
# student's own loss in the last epochs, chosen on runs of four epochs; the teacher's pyramid has 64
# channels, and its features are large.
distill = dict(
    teacher=dict(
        config="configs/detection/bccd/teacher.py",
        checkpoint="work_dirs/demo/bccd/teacher/epoch_16.pth",
    ),
)
imitation = dict(
    student="neck", loss="FeatureImitation", region="boxes", weight=0.1, name="imitation"
)
fine_grained = dict(
    student="neck", loss="FeatureImitation", region="fine_grained", weight=0.1, name="fine_grained"
)
gi = dict(student="neck", loss="FeatureImitation", region="gi", weight=0.1, name="gi")
fgd = dict(student="neck", loss="FocalGlobal", channels=64, weight=0.02, name="fgd")
pkd = dict(student="neck", loss="PearsonDistance", weight=6.0, name="pkd")
cwd = dict(student="neck", loss="ChannelWiseDistillation", temperature=1.0, weight=1.0, name="cwd")
kd = dict(
    student="outputs.cls",
    loss="KLDivergence",
    activation="sigmoid",
    region="teacher_score",
    weight=1.0,
    name="kd",
)
ld = dict(
    student="outputs.box_bins",
    loss="LocalizationDistillation",
    temperature=2.0,
    region="main_score",
    weight=0.25,
    name="ld",
)
ld_vlr = dict(
    student="outputs.box_bins",
    loss="LocalizationDistillation",
    temperature=2.0,
    region="vlr_iou",
    weight=0.1,
    name="ld_vlr",
)
