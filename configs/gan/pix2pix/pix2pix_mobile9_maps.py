# The teacher of GAN compression on maps (map to photo): pix2pix with a mobile ResNet-9, 96 wide,
# and a discriminator twice as wide as the release's; hinge, 100 + 200 epochs.
_base_ = ["../_base_/default.py", "../_base_/maps.py"]
model = dict(
    type="Pix2Pix",
    generator=dict(type="MobileResnetGenerator", width=96),
    discriminator=dict(width=128, norm="instance"),
    objective="hinge",
    reconstruction=10.0,
    order="generator_first",
)
constant, decay = 100, 200
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=constant + decay, val_interval=10)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=1 / (decay + 1),  # of the last epoch; one step later it would be 0
        begin=constant - 1,
        end=constant + decay,
        by_epoch=True,
    )
]
