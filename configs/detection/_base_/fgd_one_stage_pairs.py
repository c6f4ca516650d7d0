# FGD (Yang et al., CVPR 2022) on the five levels of a one-stage detector, with the factors of the
# authors' configs for RetinaNet: alpha = 1e-3, beta = 5e-4, gamma = 5e-4, lambda = 5e-6. Their
# global part is a sum over a level's cells, here it is a mean: relation is lambda times the cells
# of an image of 800 x 1344. attention is gamma times the 256 channels, which is exact for the
# attention over channels; theirs over places is a sum, and counts more on the large levels.
distill = dict(
    pairs=[
        dict(
            student=f"neck[{level}]",
            loss="FocalGlobal",
            channels=256,
            foreground=1e-3,
            background=5e-4,
            attention=5e-4 * 256,
            relation=5e-6 * cells,
            name=f"fgd_{level}",
        )
        for level, cells in enumerate((100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11))
    ],
)
