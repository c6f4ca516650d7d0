# CIFAR-10 as torchvision has it: the folder cifar-10-batches-py in $TASKDISTILL_DATA, or else in
# data/; download=True fetches it.
num_classes = 10
data_root = "{{$TASKDISTILL_DATA:data}}"
data_preprocessor = dict(
    type="ClassifierPreprocessor",
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="TorchvisionImages",
        name="CIFAR10",
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
    dataset=dict(type="TorchvisionImages", name="CIFAR10", root=data_root, train=False),
)
test_dataloader = val_dataloader
