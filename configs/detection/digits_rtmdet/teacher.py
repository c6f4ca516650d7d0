# Its teacher: three times as wide and twice as deep.
_base_ = "student.py"
model = dict(
    backbone=dict(deepen_factor=0.33, widen_factor=0.375),
    neck=dict(in_channels=[96, 192, 384], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96, stacked_convs=2),
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
