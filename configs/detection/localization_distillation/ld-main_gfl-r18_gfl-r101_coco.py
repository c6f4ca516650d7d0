# Localization distillation in the main region alone, as mmdet's own LD has it: GFL ResNet-101 (2x)
# -> ResNet-18 (1x) on COCO. Zheng et al., CVPR 2022: 35.8 AP alone, 36.5 so (their README).
_base_ = "ld_gfl-r18_gfl-r101_coco.py"
distill = dict(pairs=[{{_base_.ld}}])
