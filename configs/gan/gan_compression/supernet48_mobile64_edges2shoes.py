# GAN compression's once-for-all network on edges2shoes, 10 + 30 epochs. Then:
#   python tools/search.py CONFIG CHECKPOINT --budget 5G
_base_ = "distill_mobile48_mobile64_edges2shoes.py"
model = dict(
    generator=dict(
        _delete_=True,
        type="SuperMobileResnetGenerator",
        space=[
            [48, 32],
            [48, 32],
            [48, 40, 32],
            [48, 40, 32],
            [48, 40, 32],
            [48, 40, 32],
            [48, 32, 24, 16],
            [48, 32, 24, 16],
        ],
    ),
)
student = "work_dirs/distill_mobile48_mobile64_edges2shoes/epoch_20.pth"
distill = dict(
    init=dict(generator=student, discriminator=student),
    pairs=[
        dict(student="generator.model.9", loss="FeatureImitation", adapter="sliced"),
        dict(student="generator.model.12", loss="FeatureImitation", adapter="sliced"),
        dict(student="generator.model.15", loss="FeatureImitation", adapter="sliced"),
        dict(student="generator.model.18", loss="FeatureImitation", adapter="sliced"),
    ],
)
constant, decay = 10, 30
train_cfg = dict(max_epochs=constant + decay)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=1 / (decay + 1),
        begin=constant - 1,
        end=constant + decay,
        by_epoch=True,
    )
]
search = dict(metric="SmallFD")
