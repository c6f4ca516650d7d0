# What a small GFL student learns from a larger one trained on the same data.
distill = dict(
    pairs=[
        # Imitation of the pyramid's patterns: what a channel says where, not how loudly.
        dict(student="neck", loss="PearsonDistance", weight=6.0, name="neck"),
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="teacher_score",
            weight=1.0,
            name="cls",
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=2.0,
            region="main_score",
            weight=0.25,
            name="ld",
        ),
        dict(
            student="outputs.box_bins",
            loss="LocalizationDistillation",
            temperature=2.0,
            region="vlr_iou",
            weight=0.1,
            name="ld_vlr",
        ),
    ],
)
