# SoLAD on COCO: labels assigned by the teacher, and its scores as soft labels. PAA ResNet-101 ->
# ResNet-50. Nguyen et al., WACV 2022: 40.4 AP alone, 42.4 so (their README).
# The authors' soft term of weight 10 is a mean over positions and classes, here it is a sum over
# the classes: 10 / 80.
_base_ = "mmdet::paa/paa_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::paa/paa_r101_fpn_1x_coco.py"),
    assignment=dict(scheme="own"),
    pairs=[
        dict(
            student="outputs.cls",
            loss="FocalKLDivergence",
            gamma=0.5,
            region="all",
            weight=10 / 80,
            name="soft",
        ),
    ],
)
