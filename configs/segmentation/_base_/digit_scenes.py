# Digit scenes: ten handwritten digits over photographs, composed at first use (some seconds), kept
# in $TASKDISTILL_CACHE or ~/.cache/taskdistill. Eleven classes: background, and the ink of each.
custom_imports = dict(imports=["taskdistill.tasks.segmentation"], allow_failed_imports=False)

num_classes = 11
crop_size = (64, 64)
data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=crop_size,
)

# No flip: a mirrored digit is another sign. The scenes come in the size they are trained at.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_pipeline = train_pipeline
# Small pictures with few, large digits and little clutter. In what a detector gets for its demo,
# the ink is 7 % of the pixels, and a small network takes far longer to tell digits apart.
scenes = dict(
    train=1000,
    val=200,
    size=64,
    seed=0,
    options=dict(
        max_digits=3,
        digit_size=(0.4, 0.8),
        contrast=(0.8, 1.3),
        clutter=1,
        occluders=0,
        empty=0.02,
    ),
)
# Loading a batch takes 6 ms, less than handing it over from a worker.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,  # pooling to 1x1 with batch norm cannot train on a last batch of one
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="DigitScenes", split="train", scenes=scenes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DigitScenes", split="val", scenes=scenes, test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="ClassIoU")
test_evaluator = val_evaluator
