# Chen et al., NeurIPS 2017, on a dense detector: hint on the pyramid through 1x1 adapters,
# class-weighted soft loss, teacher-bounded regression. ATSS ResNet-101 -> ResNet-18 on COCO.
_base_ = ["mmdet::atss/atss_r50_fpn_1x_coco.py", "../_base_/chen2017_pairs.py"]
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    teacher=dict(config="mmdet::atss/atss_r101_fpn_1x_coco.py"),
)
