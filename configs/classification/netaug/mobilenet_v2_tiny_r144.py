# NetAug on MobileNetV2-Tiny, 144 pixels: 51.7 % without, 53.3 % with it (authors' README).
_base_ = ["../_base_/netaug_schedule.py", "../_base_/imagenet.py"]
size = 144
model = dict(
    type="AugmentedClassifier",
    network=dict(type="MobileNetV2Tiny", num_classes=1000),
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
            dict(type="Resize", size=165),  # size / 0.875
            dict(type="CenterCrop", size=size),
        ]
    )
)
test_dataloader = val_dataloader
