# A transformer learns from a convolutional network: PSPNet ResNet-101 -> SegFormer B0 on
# Cityscapes, in the student's own setting (crops of 1024x1024). The teacher's logits, of stride 8,
# are resized to the student's of stride 4.
_base_ = "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py"
distill = dict(
    # The weights are those of mmseg's model zoo, named in the config's metafile.
    teacher=dict(config="mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py"),
    pairs=[
        dict(
            student="outputs.logits",
            loss="ChannelWiseDistillation",
            temperature=4.0,
            weight=3.0,
        ),
        # Which places belong together: needs no common channels. The last stage's tokens, stride
        # 32, are laid out as a grid, and the teacher's map of stride 8 is pooled to it.
        dict(
            student="backbone.layers.3.2",
            teacher="backbone.layer4",
            loss="PairWise",
            weight=1.0,
        ),
    ],
)
