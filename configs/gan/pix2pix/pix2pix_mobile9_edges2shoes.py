# The teacher of GAN compression on edges2shoes: 5 + 15 epochs.
_base_ = ["../_base_/default.py", "../_base_/edges2shoes.py"]
model = dict(
    type="Pix2Pix",
    generator=dict(type="MobileResnetGenerator"),
    discriminator=dict(width=128, norm="instance"),
    objective="hinge",
    order="generator_first",
)
constant, decay = 5, 15
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=constant + decay, val_interval=1)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=1 / (decay + 1),
        begin=constant - 1,
        end=constant + decay,
        by_epoch=True,
    )
]
