# The demo's student, trained alone.
_base_ = [
    "../_base_/unet_tiny.py",
    "../_base_/digit_scenes.py",
    "../_base_/short_schedule.py",
]
model = dict(data_preprocessor={{_base_.data_preprocessor}})
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=6e-3,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
