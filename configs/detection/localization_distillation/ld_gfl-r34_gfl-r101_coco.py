# Localization distillation on COCO, the paper's setting: GFL ResNet-101 (2x) -> ResNet-34 (1x).
# Zheng et al., CVPR 2022: 38.9 AP alone, 41.0 with LD in both regions and KD (their README).
_base_ = "ld_gfl-r18_gfl-r101_coco.py"
model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint="torchvision://resnet34")))
