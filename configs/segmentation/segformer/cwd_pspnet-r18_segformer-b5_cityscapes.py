# A convolutional network learns from a transformer: SegFormer B5 -> PSPNet ResNet-18 on
# Cityscapes, in the student's own setting (crops of 512x1024). The teacher's logits, of stride 4,
# are resized to the student's of stride 8.
_base_ = "mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py"
distill = dict(
    # The weights are those of mmseg's model zoo, named in the config's metafile.
    teacher=dict(config="mmseg::segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py"),
    pairs=[
        dict(
            student="outputs.logits",
            loss="ChannelWiseDistillation",
            temperature=4.0,
            weight=3.0,
        ),
        # Which places belong together: needs no common channels. The student's map of stride 8 is
        # pooled to the grid of the last stage's tokens, stride 32.
        dict(
            student="backbone.layer4",
            teacher="backbone.layers.3.2",
            loss="PairWise",
            weight=1.0,
        ),
    ],
)
