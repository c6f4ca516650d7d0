# Chen et al., NeurIPS 2017, whole, on Mask R-CNN ResNet-101 -> ResNet-18 on COCO: boxes and classes
# are distilled, masks are learned from the labels.
_base_ = [
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "../_base_/chen2017_two_stage_pairs.py",
]
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    teacher=dict(config="mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py"),
)
