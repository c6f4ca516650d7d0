# The student of the BCCD table, trained alone: GFL on a ResNet-18 a sixteenth as wide, 8 epochs
# from scratch at 320x240.
_base_ = [
    "../_base_/gfl_tiny.py",
    "../_base_/bccd.py",
    "../_base_/short_schedule.py",
]
model = dict(
    backbone=dict(base_channels=4),
    neck=dict(in_channels=[8, 16, 32], out_channels=16),
    bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16),
)
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=4e-3,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
