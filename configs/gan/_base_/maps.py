# maps in the release's layout: data/maps/{train,val}, pictures aerial photo | map. Paired; map to
# photo, as GAN compression has it ("map2sat").
data_root = "data/maps"
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages",
        data_root=data_root,
        split="train",
        direction="BtoA",
        load_size=286,
        crop_size=256,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="AlignedImages",
        data_root=data_root,
        split="val",
        direction="BtoA",
        crop_size=256,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type="ImageSetDistance"), dict(type="PairedError")]
test_evaluator = val_evaluator
