# The student of the two-stage BCCD table, trained alone: 8 epochs from scratch at 320x240.
_base_ = [
    "../_base_/faster_rcnn_tiny.py",
    "../_base_/bccd.py",
    "../_base_/short_schedule.py",
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
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
