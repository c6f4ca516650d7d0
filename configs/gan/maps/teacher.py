# The teacher of the maps table: GAN compression's mobile ResNet-9, 64 wide, 12 epochs.
_base_ = "student.py"
model = dict(generator=dict(width=64))
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
# Half the student's rate: the wider network needs less.
optim_wrapper = dict(
    generator=dict(optimizer=dict(type="Adam", lr=5e-4, betas=(0.5, 0.999))),
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
