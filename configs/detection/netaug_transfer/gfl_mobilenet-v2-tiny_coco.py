# A classifier trained with NetAug as the backbone of a detector: GFL on MobileNetV2-Tiny, COCO. Its
# weights are those of configs/classification/netaug/mobilenet_v2_tiny_r144.py. Cai et al., ICLR
# 2022, compare backbones trained with and without NetAug (on other detectors): give the other run's
# file as model.backbone.checkpoint.
_base_ = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.classification"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type="ClassifierBackbone",
        network=dict(type="MobileNetV2Tiny", num_classes=1000),
        out=["stages.2", "stages.4", "stages.6"],  # strides 8, 16 and 32
        checkpoint="work_dirs/mobilenet_v2_tiny_r144/epoch_155.pth",
    ),
    neck=dict(in_channels=[16, 32, 112], out_channels=64, start_level=0),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
