# CamVid: 701 photos of streets, 240 wide and 180 high, eleven classes and void. The folder is
# camvid_small in $TASKDISTILL_DATA, or else in data/.
custom_imports = dict(imports=["taskdistill.tasks.segmentation"], allow_failed_imports=False)

data_root = "{{$TASKDISTILL_DATA:data}}/camvid_small"
num_classes = 11
crop_size = (160, 160)
data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=crop_size,  # of training; whole images are of one size and need no padding
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(240, 180), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
# Loading and augmenting a batch takes 25 ms on one core. Where a training step is not several times
# that (on a GPU), set num_workers.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,  # pooling to 1x1 with batch norm cannot train on a last batch of one
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CamVid", split="train", data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CamVid", split="val", data_root=data_root, test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CamVid", split="test", data_root=data_root, test_mode=True, pipeline=test_pipeline
    ),
)

val_evaluator = dict(type="ClassIoU")
test_evaluator = val_evaluator
