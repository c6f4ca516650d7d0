# The demo's teacher: the same network, more than three times as wide.
_base_ = "student.py"
width = 20
model = dict(
    backbone=dict(base_channels=width),
    decode_head=dict(in_channels=2 * width, channels=2 * width),
    auxiliary_head=dict(in_channels=8 * width, channels=4 * width),
)
max_epochs = 12
# Half the student's learning rate: the wider network needs less.
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=3e-3,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
