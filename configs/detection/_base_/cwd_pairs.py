# Channel-wise distillation (Shu et al., ICCV 2021) of the pyramid, with the settings of mmrazor:
# temperature 1 and a weight of 10 on each of five levels, of which a pair takes the mean.
distill = dict(
    pairs=[
        dict(
            student="neck",
            loss="ChannelWiseDistillation",
            temperature=1.0,
            weight=5 * 10.0,
            name="cwd",
        ),
    ],
)
