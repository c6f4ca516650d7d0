# Localization distillation on a detector that regresses four numbers: RetinaNet with its regressors
# turned into distributions (Zheng et al., CVPR 2022), ResNet-101 -> ResNet-18 on COCO.
# Terms are means over their region: positives of RetinaNet are too many for the sums of GFL's.
_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(bbox_head=dict(type="BinnedRetinaHead"))
distill = dict(
    teacher=dict(
        config="configs/detection/localization_distillation/retinanet-binned_r101_coco.py",
        checkpoint="work_dirs/retinanet-binned_r101_coco/epoch_12.pth",
    ),
    pairs=[
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            region="main_score",
            weight=0.45,
            name="ld",
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            region="vlr_iou",
            weight=0.45,
            name="ld_vlr",
        ),
    ],
)
