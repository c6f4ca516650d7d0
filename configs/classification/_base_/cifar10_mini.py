# 4000 training and 1000 test images of CIFAR-10, 32x32. Not part of the package: the file is
# cifar10_mini/cifar10_mini.npz in $TASKDISTILL_DATA, or else in data/.
data_root = "{{$TASKDISTILL_DATA:data}}"
data_file = "cifar10_mini/cifar10_mini.npz"
num_classes = 10
# ImageNet's, as the teachers in weights/ were trained with.
data_preprocessor = dict(
    type="ClassifierPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
)
train_transforms = [
    dict(type="RandomCrop", size=32, padding=4),
    dict(type="RandomHorizontalFlip"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="NpzImages",
        root=data_root,
        path=data_file,
        split="train",
        transforms=train_transforms,
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="NpzImages", root=data_root, path=data_file, split="test"),
)
test_dataloader = val_dataloader
