# A short schedule for small data on a CPU: 10 epochs, AdamW, one learning-rate cycle. A task adds
# its scope and how it draws.
_base_ = "runtime.py"
max_epochs = 10
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0, norm_type=2),
)
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=4e-3,
        total_steps=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
