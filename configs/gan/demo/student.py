# The demo's student, trained alone: pix2pix with a thin mobile ResNet.
_base_ = ["../_base_/default.py", "../_base_/digit_outlines.py"]
model = dict(
    type="Pix2Pix",
    generator=dict(type="MobileResnetGenerator", width=6, blocks=6),
    discriminator=dict(width=16, layers=2, norm="instance"),
    reconstruction=10.0,
    objective="hinge",
    order="generator_first",
)
max_epochs = 6
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
# Ten times the papers' rate: minutes instead of days.
optimizer = dict(type="Adam", lr=2e-3, betas=(0.5, 0.999))
optim_wrapper = dict(
    generator=dict(optimizer=optimizer),
    discriminator=dict(optimizer=dict(type="Adam", lr=5e-4, betas=(0.5, 0.999))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0, end_factor=0.05, begin=2, end=max_epochs, by_epoch=True)
]
