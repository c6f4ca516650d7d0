# Chen et al., NeurIPS 2017, whole: hint, weighted soft classes and bounded boxes in both stages.
# Faster R-CNN ResNet-101 -> ResNet-18 with a feature pyramid on COCO (the paper: VGG nets, one
# level).
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/chen2017_two_stage_pairs.py",
]
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
)
