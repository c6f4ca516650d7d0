# Digit scenes: ten handwritten digits over photographs, composed at first use (a few seconds),
# kept in $TASKDISTILL_CACHE or ~/.cache/taskdistill.
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)

# No flip: a mirrored digit is another sign. The scenes come in the size they are trained at.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),  # sets the scale_factor heads ask for
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        # "instances" is the ground truth that CocoMetric evaluates against.
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances"),
    ),
]
scenes = dict(train=1000, val=200, size=128, seed=0)
# Loading 1000 scenes takes half a second: less than starting workers for it.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="DigitScenes",
        split="train",
        scenes=scenes,
        filter_cfg=dict(filter_empty_gt=False),  # scenes without a digit are part of the task
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DigitScenes", split="val", scenes=scenes, test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="CocoMetric", metric="bbox")
test_evaluator = val_evaluator
