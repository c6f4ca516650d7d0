# NetAug on a ResNet-8 that is half as wide as usual, on 4000 images of CIFAR-10: small enough for a
# CPU. Widths are drawn in the first half of the epochs.
_base_ = ["../_base_/default.py", "../_base_/cifar10_mini.py", "../_base_/schedule.py"]
max_epochs = 30
model = dict(
    type="AugmentedClassifier",
    network=dict(type="CifarResNet", depth=8, num_classes=10, shortcut="B", widths=(8, 16, 32)),
    # Less than the paper's: without depthwise convolutions the cost grows with the square.
    width=[1.0, 1.5],
    expansion=[1.0, 1.5, 2.0],
    expand_only=max_epochs // 2,
    data_preprocessor={{_base_.data_preprocessor}},
)
train_cfg = dict(max_epochs=max_epochs)
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
custom_hooks = [dict(type="RecalibrateHook", batches=20)]
