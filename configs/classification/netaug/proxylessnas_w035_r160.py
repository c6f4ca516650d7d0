# NetAug on ProxylessNAS-Mobile at width 0.35, 160 pixels: 59.1 % without, 60.8 % with it (README).
_base_ = ["../_base_/netaug_schedule.py", "../_base_/imagenet.py"]
size = 160
model = dict(
    type="AugmentedClassifier",
    network=dict(type="ProxylessNASMobile", width=0.35, num_classes=1000),
    width=[1.0, 1.8, 2.6],
    expansion=[1.0, 1.6, 2.2, 2.8],
    alpha=1.0,
    expand_only=75,
    label_smoothing=0.1,
    data_preprocessor={{_base_.data_preprocessor}},
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=size),
            dict(type="RandomHorizontalFlip"),
            dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="Resize", size=183),  # size / 0.875
            dict(type="CenterCrop", size=size),
        ]
    )
)
test_dataloader = val_dataloader
