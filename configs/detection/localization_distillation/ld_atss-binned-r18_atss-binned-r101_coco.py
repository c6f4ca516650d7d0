# Localization distillation on a detector that regresses four numbers: ATSS with its regressors
# turned into distributions (Zheng et al., CVPR 2022), ResNet-101 -> ResNet-18 on COCO. ATSS has
# the positives of GFL, and so the authors' normalisers.
_base_ = ["mmdet::atss/atss_r50_fpn_1x_coco.py", "../_base_/ld_pairs.py"]
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(type="BinnedATSSHead"),
)
distill = dict(
    teacher=dict(
        config="configs/detection/localization_distillation/atss-binned_r101_coco.py",
        checkpoint="work_dirs/atss-binned_r101_coco/epoch_12.pth",
    ),
)
