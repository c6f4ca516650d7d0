# GFL on a ResNet-18 an eighth as wide, three pyramid levels: 0.2M parameters.
_base_ = "resnet18_tiny.py"
model = dict(
    type="GFL",
    neck=dict(
        type="FPN",
        in_channels=[16, 32, 64],
        out_channels=24,
        num_outs=3,
    ),
    bbox_head=dict(
        type="GFLHead",
        num_classes=10,
        in_channels=24,
        feat_channels=24,
        stacked_convs=1,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),
        reg_max=8,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=3,
            scales_per_octave=1,
            strides=[8, 16, 32],
        ),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=50,
    ),
)
