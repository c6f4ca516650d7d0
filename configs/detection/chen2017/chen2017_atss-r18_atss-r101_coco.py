# Chen et al., NeurIPS 2017, on a dense detector: hint on the pyramid through 1x1 adapters,
# class-weighted soft loss, teacher-bounded regression. ATSS ResNet-101 -> ResNet-18 on COCO.
# The paper halves the hard class loss beside the soft one (mu = 0.5); here it keeps its weight.
_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    teacher=dict(config="mmdet::atss/atss_r101_fpn_1x_coco.py"),
    pairs=[
        dict(student="neck", loss="Hint", adapter="conv1x1", weight=0.5),
        dict(
            student="outputs.cls",
            loss="WeightedSoftCrossEntropy",
            activation="sigmoid",
            region="main",
            weight=0.5,
        ),
        dict(student="outputs.box", loss="BoundedRegression", region="main", weight=0.5),
    ],
)
