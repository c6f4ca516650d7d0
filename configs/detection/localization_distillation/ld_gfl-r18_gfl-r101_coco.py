# Localization distillation on COCO, the paper's setting: GFL ResNet-101 (2x) -> ResNet-18 (1x).
# Zheng et al., CVPR 2022: 35.8 AP alone, 37.5 with LD in both regions and KD (their README).
_base_ = ["mmdet::gfl/gfl_r50_fpn_1x_coco.py", "../_base_/ld_pairs.py"]
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
)
