# Its teacher: four times as wide.
_base_ = "student.py"
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256], out_channels=96),
    rpn_head=dict(in_channels=96, feat_channels=96),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(in_channels=96, fc_out_channels=256),
    ),
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
