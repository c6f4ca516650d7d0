# maps at 128 pixels, aerial photo -> map: 320 pairs for training, 80 for validation, pictures
# photo | map. Not part of the package: maps_128/{train,val} in $TASKDISTILL_DATA, or else in
# data/.
data_root = "{{$TASKDISTILL_DATA:data}}/maps_128"
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages", data_root=data_root, split="train", load_size=143, crop_size=128
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages", data_root=data_root, split="val", crop_size=128, test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="ImageSetDistance"),
    dict(type="PairedError"),
    # What the map says of each pixel, by the nearest of the colours it is drawn in.
    dict(
        type="LabelMapIoU",
        palette=[
            [232, 229, 222],
            [204, 220, 175],
            [177, 207, 252],
            [236, 168, 66],
            [252, 252, 252],
        ],
        classes=["land", "park", "water", "motorway", "street"],
    ),
]
test_evaluator = val_evaluator
