# Localization distillation in the second stage of Faster R-CNN, with its regressors turned into
# distributions (Zheng et al., CVPR 2022), and class distillation beside it. ResNet-101 -> ResNet-18
# on COCO; both heads see the student's proposals.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(bbox_head=dict(type="BinnedShared2FCBBoxHead")),
)
distill = dict(
    teacher=dict(
        config="configs/detection/localization_distillation/faster-rcnn-binned_r101_coco.py",
        checkpoint="work_dirs/faster-rcnn-binned_r101_coco/epoch_12.pth",
    ),
    pairs=[
        dict(
            student="outputs.roi_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            # Divided by all sampled proposals, of which up to a quarter are positive: 4 * 0.25.
            region="roi_main",
            weight=1.0,
            name="ld",
        ),
        dict(
            student="outputs.roi_cls",
            loss="KLDivergence",
            temperature=2.0,
            weight=0.5,
            name="kd",
        ),
    ],
)
