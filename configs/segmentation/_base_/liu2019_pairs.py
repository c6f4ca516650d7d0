# Liu et al., CVPR 2019 and TPAMI: pixel-wise, pair-wise and holistic distillation, weighted as in
# the script of the authors' repository (10, 0.5 and 0.1, on 8 images).
#
#   Pixel-wise: their cross-entropy is summed over the 8 images and divided by the size of the map
#     alone; here a term is a mean over the images too: 10 * 8 = 80. The gradient of a cross-entropy
#     is that of the divergence, which is 0 where student and teacher agree. Unlabelled pixels
#     count, as with them.
#   Pair-wise: after max pooling by half the map (3x3 nodes of a map of 65x65), with norms held
#     constant in the gradient. The same reduction, so the same weight.
#   Holistic: the same weight. Their discriminator's own loss is scaled by 0.1 as well, which for
#     SGD comes to a tenth of their learning rate of 4e-4 and ten times their weight decay of 5e-4.
distill = dict(
    pairs=[
        dict(
            student="outputs.logits",
            loss="PixelWise",
            divergence="teacher_student",
            region="all",
            weight=80.0,
        ),
        dict(
            student="decode_head.bottleneck",  # the map after the pyramid
            loss="PairWise",
            patch=0.5,
            pooling="max",
            norm="detached",
            weight=0.5,
        ),
        dict(student="outputs.logits", loss="Holistic", penalty=10.0, weight=0.1),
    ],
    critic=dict(optimizer=dict(type="SGD", lr=4e-5, momentum=0.9, weight_decay=5e-3)),
)
