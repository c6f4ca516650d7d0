# The releases' schedule: the learning rate constant for 100 epochs, then linearly to 0 over 100.
constant, decay = 100, 100
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
