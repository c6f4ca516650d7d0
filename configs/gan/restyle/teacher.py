# The unpaired demo's teacher: a CycleGAN of mobile ResNets.
_base_ = ["../_base_/default.py", "../_base_/digit_restyle.py"]
model = dict(
    type="CycleGAN",
    generator=dict(type="MobileResnetGenerator", width=24, blocks=6),
    discriminator=dict(width=16, layers=2, norm="instance"),
)
max_epochs = 6
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    generator=dict(optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999))),
    discriminator=dict(optimizer=dict(type="Adam", lr=5e-4, betas=(0.5, 0.999))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0, end_factor=0.05, begin=2, end=max_epochs, by_epoch=True)
]
