# Label assignment distillation on another detector (Nguyen et al., WACV 2022): labels from the
# probabilistic assignment on the predictions of ATSS ResNet-101, learned by ATSS ResNet-50 on COCO.
_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::atss/atss_r101_fpn_1x_coco.py"),
    assignment=dict(scheme="paa"),
    pairs=[],
)
