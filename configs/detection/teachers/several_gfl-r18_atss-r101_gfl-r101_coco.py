# Two teachers of different kinds: GFL ResNet-18 learns the patterns of the pyramid from ATSS
# ResNet-101, and scores and edges from GFL ResNet-101, on COCO.
_base_ = ["mmdet::gfl/gfl_r50_fpn_1x_coco.py", "../_base_/ld_pairs.py"]
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
distill = dict(
    # The first serves the pairs that name none.
    teachers=dict(
        gfl=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
        atss=dict(config="mmdet::atss/atss_r101_fpn_1x_coco.py"),
    ),
    pairs=[
        {{_base_.ld}},
        {{_base_.ld_vlr}},
        {{_base_.kd}},
        dict(student="neck", loss="PearsonDistance", weight=6.0, of="atss", name="neck"),
    ],
)
