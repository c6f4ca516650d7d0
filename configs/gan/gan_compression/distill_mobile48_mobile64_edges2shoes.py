# GAN compression's pre-distillation on edges2shoes: paired, so the image is held against the ground
# truth (the student's own term, weight 100) and the layers against the teacher's, weight 1.
_base_ = "../pix2pix/pix2pix_mobile9_edges2shoes.py"
model = dict(generator=dict(width=48))
distill = dict(
    teacher=dict(
        config="configs/gan/pix2pix/pix2pix_mobile9_edges2shoes.py",
        checkpoint="work_dirs/pix2pix_mobile9_edges2shoes/epoch_20.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    pairs=[
        dict(student="generator.model.9", loss="FeatureImitation"),
        dict(student="generator.model.12", loss="FeatureImitation"),
        dict(student="generator.model.15", loss="FeatureImitation"),
        dict(student="generator.model.18", loss="FeatureImitation"),
    ],
)
