# The methods of the two-stage BCCD table, one by one: the parts of chen2017_two_stage_pairs.py, and
# imitation of the teacher's pyramid, which has 96 channels, in two ways.
_base_ = "chen2017_two_stage_pairs.py"
fgd = dict(student="neck", loss="FocalGlobal", channels=96, weight=0.05, name="fgd")
fine_grained = dict(
    student="neck", loss="FeatureImitation", region="fine_grained", weight=0.5, name="fine_grained"
)
distill = dict(
    _delete_=True,  # the whole recipe, of which each variant takes what it says
    teacher=dict(
        config="configs/detection/bccd_two_stage/teacher.py",
        checkpoint="work_dirs/demo/bccd_two_stage/teacher/epoch_16.pth",
    ),
)
