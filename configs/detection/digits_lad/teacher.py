# Its teacher: four times as wide and with a deeper head.
_base_ = "student.py"
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=2e-3,
        total_steps=10,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
