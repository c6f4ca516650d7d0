# A classifier trained with NetAug as the backbone of a detector: RetinaNet on MobileNetV2-Tiny,
# Pascal VOC. Its weights are those of configs/classification/netaug/mobilenet_v2_tiny_r144.py; see
# gfl_mobilenet-v2-tiny_coco.py.
_base_ = "mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py"
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
