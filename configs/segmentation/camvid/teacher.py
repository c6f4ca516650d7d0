# The teacher of the CamVid table: the same network, four times as wide, 16 epochs.
_base_ = "student.py"
model = dict(
    backbone=dict(stem_channels=64, base_channels=32),
    decode_head=dict(in_channels=256, channels=96),
    auxiliary_head=dict(in_channels=128, channels=64),
)
max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
# Half the student's learning rate: the wider network needs less.
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=2e-3,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
