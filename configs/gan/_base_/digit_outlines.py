# Outlines of handwritten digits -> the digits filled with ink and shade: paired, 32x32, from the
# real digits that scikit-learn ships.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="DigitOutlines", split="train", size=32),
)
val_dataloader = dict(
    batch_size=40,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="DigitOutlines", split="val", size=32, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type="ImageSetDistance"), dict(type="PairedError")]
test_evaluator = val_evaluator
