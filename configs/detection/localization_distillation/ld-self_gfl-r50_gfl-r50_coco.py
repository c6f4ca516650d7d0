# Self-distillation: a GFL ResNet-50 learns from a trained one of the same size, by localization
# distillation in both regions and KD (Zheng et al., CVPR 2022), on COCO.
_base_ = ["mmdet::gfl/gfl_r50_fpn_1x_coco.py", "../_base_/ld_pairs.py"]
distill = dict(
    teacher=dict(config="mmdet::gfl/gfl_r50_fpn_1x_coco.py"),
)
