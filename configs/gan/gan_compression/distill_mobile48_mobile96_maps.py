# GAN compression's pre-distillation on maps (map to photo): half of the teacher's width; the
# ground truth with weight 10, the layers with 0.01.
_base_ = "../pix2pix/pix2pix_mobile9_maps.py"
model = dict(generator=dict(width=48))
distill = dict(
    teacher=dict(
        config="configs/gan/pix2pix/pix2pix_mobile9_maps.py",
        checkpoint="work_dirs/pix2pix_mobile9_maps/epoch_300.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    pairs=[
        dict(student="generator.model.9", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.12", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.15", loss="FeatureImitation", weight=0.01),
        dict(student="generator.model.18", loss="FeatureImitation", weight=0.01),
    ],
)
