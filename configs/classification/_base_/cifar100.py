# CIFAR-100 as torchvision has it: the folder cifar-100-python in $TASKDISTILL_DATA, or else in
# data/; download=True fetches it.
num_classes = 100
data_root = "{{$TASKDISTILL_DATA:data}}"
data_preprocessor = dict(
    type="ClassifierPreprocessor",
    mean=[129.3049, 124.0675, 112.434],
    std=[68.1702, 65.3923, 70.418],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="TorchvisionImages",
        name="CIFAR100",
        root=data_root,
        train=True,
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomHorizontalFlip"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="TorchvisionImages", name="CIFAR100", root=data_root, train=False),
)
test_dataloader = val_dataloader
