# Chen et al., NeurIPS 2017, on a dense detector: hint on the pyramid through 1x1 adapters,
# class-weighted soft loss, teacher-bounded regression. RetinaNet ResNet-101 -> ResNet-18 on COCO.
# The paper halves the hard class loss beside the soft one (mu = 0.5); here it keeps its weight.
_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::retinanet/retinanet_r101_fpn_1x_coco.py"),
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
