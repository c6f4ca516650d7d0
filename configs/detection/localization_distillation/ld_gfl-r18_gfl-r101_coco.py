# Localization distillation on COCO, the paper's setting: GFL ResNet-101 (2x) -> ResNet-18 (1x).
# Zheng et al., CVPR 2022: 35.8 AP alone, 37.5 with LD in both regions and KD (their README).
#
# mmdet and the authors' code average over the n+1 = 17 bins (or the 80 classes) and divide sums
# over positions by fixed numbers; here a term is a sum over bins and a mean over positions. At
# their 3 images a GPU, with some 100 positives of mean score 0.3 and 400 valuable anchors of mean
# IoU 0.3, their weights come to
#   LD, main:  0.25 * (100 * 0.3) / 17          = 0.45   (their average factor 4 is for the edges)
#   LD, VLR:   0.25 * (400 * 0.3) * (4 / 16) / 17 = 0.45
#   KD, main:  10 / 80                           = 0.125
_base_ = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
    pairs=[
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            region="main_score",
            weight=0.45,
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            region="vlr_iou",
            weight=0.45,
        ),
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            temperature=2.0,
            region="main",
            weight=0.125,
        ),
    ],
)
