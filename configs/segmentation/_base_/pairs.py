# What a small PSPNet learns from a larger one, one entry a term; recipes pick from them. Each is a
# mean over pixels (or pairs of nodes, or channels), as the cross-entropy it is added to.
pixel_wise = dict(student="outputs.logits", loss="PixelWise", weight=10.0, name="pixel")
pair_wise = dict(
    student="decode_head.bottleneck",
    loss="PairWise",
    patch=0.5,
    pooling="max",
    weight=1.0,
    name="pair",
)
# A quarter of the paper's critic in width: its maps have 19 classes and 65x65 places.
holistic = dict(student="outputs.logits", loss="Holistic", channels=16, weight=0.1, name="holistic")
channel_wise = dict(
    student="outputs.logits",
    loss="ChannelWiseDistillation",
    temperature=4.0,
    weight=3.0,
    name="cwd",
)
