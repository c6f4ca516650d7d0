# FGD (Yang et al., CVPR 2022) on the first four levels of Faster R-CNN, with the factors of the
# authors' config for it, 20 (alpha, beta) and 10 times smaller than RetinaNet's: alpha = 5e-5,
# beta = 2.5e-5, gamma = 5e-5, lambda = 5e-7. relation and attention as in fgd_one_stage_pairs.py.
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
