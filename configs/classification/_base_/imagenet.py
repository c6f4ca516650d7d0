# ImageNet in folders, as torchvision's ImageFolder reads them:
# data/imagenet/{train,val}/CLASS/*.JPEG.
# Crops, flips and colours as in the release of NetAug. Sizes are of 224 pixels; the recipes set
# their own.
data_root = "data/imagenet"
num_classes = 1000
data_preprocessor = dict(
    type="ClassifierPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
)
train_transforms = [
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomHorizontalFlip"),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
]
val_transforms = [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="TorchvisionImages",
        name="ImageFolder",
        root=data_root + "/train",
        transforms=train_transforms,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="TorchvisionImages",
        name="ImageFolder",
        root=data_root + "/val",
        transforms=val_transforms,
    ),
)
test_dataloader = val_dataloader
