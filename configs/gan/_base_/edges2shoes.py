# edges2shoes in the release's layout: data/edges2shoes/{train,val}, pictures A|B. Paired.
data_root = "data/edges2shoes"
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages", data_root=data_root, split="train", load_size=286, crop_size=256
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages", data_root=data_root, split="val", crop_size=256, test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type="ImageSetDistance"), dict(type="PairedError")]
test_evaluator = val_evaluator
