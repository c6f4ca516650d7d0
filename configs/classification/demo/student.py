# The demo's student, trained alone: a ResNet-8 of a few channels.
_base_ = ["../_base_/default.py", "../_base_/digits.py"]
model = dict(
    type="ImageClassifier",
    network=dict(type="CifarResNet", depth=8, widths=(2, 4, 8), num_classes={{_base_.num_classes}}),
    data_preprocessor={{_base_.data_preprocessor}},
)
max_epochs = 10
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
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
