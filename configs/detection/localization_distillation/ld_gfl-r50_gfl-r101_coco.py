# Localization distillation on COCO, the paper's setting: GFL ResNet-101 (2x) -> ResNet-50 (1x).
# Zheng et al., CVPR 2022: 40.1 AP alone, 42.1 with LD in both regions and KD (their README).
_base_ = ["mmdet::gfl/gfl_r50_fpn_1x_coco.py", "../_base_/ld_pairs.py"]
distill = dict(
    teacher=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
)
