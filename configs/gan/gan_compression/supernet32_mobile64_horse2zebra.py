# GAN compression's once-for-all network on horse2zebra: each step trains one of 3^8 channel
# configurations. Begins from the distilled student; 200 + 200 epochs. Then:
#   python tools/search.py CONFIG CHECKPOINT --budget 2.7G
_base_ = "distill_mobile32_mobile64_horse2zebra.py"
model = dict(
    generator=dict(
        _delete_=True, type="SuperMobileResnetGenerator", space=[[32, 24, 16] for _ in range(8)]
    ),
)
student = "work_dirs/distill_mobile32_mobile64_horse2zebra/epoch_200.pth"
distill = dict(
    init=dict(generator=student, discriminator=student),
    pairs=[
        dict(student="outputs.image", loss="Reconstruction", weight=10.0),
        dict(student="generator.model.9", loss="FeatureImitation", weight=0.01, adapter="sliced"),
        dict(student="generator.model.12", loss="FeatureImitation", weight=0.01, adapter="sliced"),
        dict(student="generator.model.15", loss="FeatureImitation", weight=0.01, adapter="sliced"),
        dict(student="generator.model.18", loss="FeatureImitation", weight=0.01, adapter="sliced"),
    ],
)
constant, decay = 200, 200
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
