# BCCD: 364 photos of blood, 3 classes, Pascal VOC annotations, converted at first use. The folder
# is bccd in $TASKDISTILL_DATA, or else in data/.
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)

data_root = "{{$TASKDISTILL_DATA:data}}/bccd"
scale = (320, 240)  # half of the photos' side: trains on a CPU

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    # After Resize: the ground truth stays in the photo's own pixels, as the predictions.
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        # "instances" is the ground truth that CocoMetric evaluates against.
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances"),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="BCCD", split="train", data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BCCD", split="val", data_root=data_root, test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BCCD", split="test", data_root=data_root, test_mode=True, pipeline=test_pipeline
    ),
)

val_evaluator = dict(type="CocoMetric", metric="bbox")
test_evaluator = val_evaluator
