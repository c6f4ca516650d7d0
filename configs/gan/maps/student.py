# The student of the maps table, trained alone: pix2pix with a mobile ResNet-9, a quarter of the
# teacher's width.
_base_ = ["../_base_/default.py", "../_base_/maps_128.py"]
model = dict(
    type="Pix2Pix",
    generator=dict(type="MobileResnetGenerator", width=16),
    discriminator=dict(width=32, norm="instance"),
    objective="hinge",
    reconstruction=100.0,
    order="generator_first",
)
max_epochs = 10
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=5)
# Several times the papers' rate: a hundredth of their steps.
optim_wrapper = dict(
    generator=dict(optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999))),
    discriminator=dict(optimizer=dict(type="Adam", lr=4e-4, betas=(0.5, 0.999))),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        by_epoch=True,
    )
]
