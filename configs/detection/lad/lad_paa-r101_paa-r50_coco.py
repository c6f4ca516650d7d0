# Label assignment distillation from the smaller network to the larger, on COCO: PAA ResNet-50
# assigns the labels that PAA ResNet-101 learns. Nguyen et al., WACV 2022: 42.6 AP alone, 43.3 so
# (their README).
_base_ = "mmdet::paa/paa_r101_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::paa/paa_r50_fpn_1x_coco.py"),
    assignment=dict(scheme="own"),
    pairs=[],
)
