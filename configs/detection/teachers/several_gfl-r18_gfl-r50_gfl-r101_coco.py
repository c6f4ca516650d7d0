# Two teachers: GFL ResNet-18 learns scores and the pyramid's patterns from ResNet-50, and the edges
# of the boxes from ResNet-101, on COCO.
_base_ = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    # The weights are those of mmdet's model zoo, named in the configs' metafiles.
    teachers=dict(
        r50=dict(config="mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py"),
        r101=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
    ),
    pairs=[
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="teacher_score",
            weight=1.0,
            of="r50",
            name="cls",
        ),
        dict(student="neck", loss="PearsonDistance", weight=6.0, of="r50", name="neck"),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=10.0,
            region="main_score",
            weight=0.45,
            of="r101",
            name="ld",
        ),
    ],
)
