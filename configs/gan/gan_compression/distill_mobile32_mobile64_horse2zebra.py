# GAN compression's pre-distillation on horse2zebra: half of the mobile CycleGAN's width, no
# cycle, the teacher's image as the target. The sum over the four layers has weight 0.01.
_base_ = ["../_base_/default.py", "../_base_/horse2zebra.py", "../_base_/epochs_100_100.py"]
model = dict(
    type="ImageTranslator",
    generator=dict(type="MobileResnetGenerator", width=32),
    discriminator=dict(norm="instance"),
)
distill = dict(
    teacher=dict(
        config="configs/gan/cyclegan/cyclegan_mobile9_horse2zebra.py",
        checkpoint="work_dirs/cyclegan_mobile9_horse2zebra/epoch_200.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    pairs=[
        dict(student="outputs.image", loss="Reconstruction", weight=10.0),
        dict(student="generator.model.9", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.12", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.15", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.18", loss="FeatureImitation", weight=0.01),
    ],
)
