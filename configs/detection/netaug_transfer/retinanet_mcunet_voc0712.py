# The same with MCUNet, trained by configs/classification/netaug/mcunet_r176.py.
_base_ = "retinanet_mobilenet-v2-tiny_voc0712.py"
model = dict(
    backbone=dict(
        network=dict(type="MCUNet"),
        checkpoint="work_dirs/mcunet_r176/epoch_155.pth",
    ),
    neck=dict(in_channels=[24, 48, 160]),
)
