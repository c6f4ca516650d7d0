# A U-Net of five levels, 6 channels wide at the first: 0.24M parameters. Its map has half of the
# resolution, which strokes of a few pixels need.
width = 6
norm_cfg = dict(type="BN", requires_grad=True)
# The background is four pixels of five; counted in full, it is all that is learned at first.
class_weight = [0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
model = dict(
    type="EncoderDecoder",
    pretrained=None,
    backbone=dict(
        type="UNet",
        in_channels=3,
        base_channels=width,
        num_stages=5,
        strides=(1, 1, 1, 1, 1),
        enc_num_convs=(1, 1, 2, 2, 2),
        dec_num_convs=(1, 1, 1, 1),
        downsamples=(True, True, True, True),
        enc_dilations=(1, 1, 1, 1, 1),
        dec_dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
        act_cfg=dict(type="ReLU"),
        upsample_cfg=dict(type="InterpConv"),
        norm_eval=False,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=2 * width,
        in_index=3,  # of the decoder's maps, from the deepest on: half the resolution
        channels=2 * width,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", class_weight=class_weight),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=8 * width,
        in_index=1,
        channels=4 * width,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", class_weight=class_weight, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
