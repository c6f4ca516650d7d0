# The demo's teacher: the same detector, four times as wide and with a deeper head.
_base_ = "student.py"
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
