# FGD (Yang et al., CVPR 2022) on the first four levels of Faster R-CNN, with the authors' factors
# for it, 20 and (lambda) 10 times smaller than those of one stage: alpha = 5e-5, beta = 2.5e-5,
# gamma = 5e-5, lambda = 5e-7. Their global part is a sum over a level's cells, here it is a mean:
# relation is lambda times the cells of an image of 800 x 1344. attention is gamma times the 256
# channels.
distill = dict(
    pairs=[
        dict(
            student=f"neck[{level}]",
            loss="FocalGlobal",
            channels=256,
            foreground=5e-5,
            background=2.5e-5,
            attention=5e-5 * 256,
            relation=5e-7 * cells,
            name=f"fgd_{level}",
        )
        for level, cells in enumerate((200 * 336, 100 * 168, 50 * 84, 25 * 42))
    ],
)
