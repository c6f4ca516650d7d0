# Handwritten digits of 8x8 pixels, which come with scikit-learn: 1352 to train, 445 to validate,
# by other writers for the most part.
num_classes = 10
data_preprocessor = dict(type="ClassifierPreprocessor", mean=[78.0] * 3, std=[96.0] * 3)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="SklearnDigits",
        split="train",
        transforms=[dict(type="RandomCrop", size=8, padding=1)],
    ),
)
val_dataloader = dict(
    batch_size=445,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="SklearnDigits", split="val"),
)
test_dataloader = val_dataloader
