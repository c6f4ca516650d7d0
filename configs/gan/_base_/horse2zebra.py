# horse2zebra in the release's layout: data/horse2zebra/{trainA,trainB,testA,testB}. Unpaired.
data_root = "data/horse2zebra"
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="UnalignedImages", data_root=data_root, split="train", load_size=286, crop_size=256
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="UnalignedImages", data_root=data_root, split="test", crop_size=256, test_mode=True
    ),
)
test_dataloader = val_dataloader
# With the Inception weights at hand, dict(type="ImageSetDistance", network="inception",
# weights=PATH) measures FID in place of the random network's distance.
val_evaluator = dict(type="ImageSetDistance")
test_evaluator = val_evaluator
