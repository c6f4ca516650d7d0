# A very short schedule for small data on a CPU: SGD with Nesterov momentum, one learning-rate
# cycle. tools/compare.py --epochs lengthens it with its cycle.
max_epochs = 2
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
)
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=0.1,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.2,
    )
]
