# The student of the BCCD table, trained alone: 24 epochs from scratch at 320x240.
_base_ = [
    "../_base_/gfl_tiny.py",
    "../_base_/bccd.py",
    "../_base_/short_schedule.py",
]
model = dict(bbox_head=dict(num_classes=3))
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [dict(total_steps=max_epochs, end=max_epochs)]
