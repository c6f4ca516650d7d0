# A DINO with 30 queries and two layers on either side, on the digit scenes, trained alone.
_base_ = [
    "../_base_/resnet18_tiny.py",
    "../_base_/digit_scenes.py",
    "../_base_/short_schedule.py",
]
model = dict(
    type="DINO",
    num_queries=30,
    num_feature_levels=3,
    with_box_refine=True,
    as_two_stage=True,
    neck=dict(
        type="ChannelMapper",
        in_channels=[16, 32, 64],
        kernel_size=1,
        out_channels=32,
        act_cfg=None,
        norm_cfg=dict(type="GN", num_groups=8),
        num_outs=3,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, dropout=0.0),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.0),
        ),
    ),
    decoder=dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=4, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=32, num_heads=4, num_levels=3, dropout=0.0),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.0),
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=16, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type="DINOHead",
        num_classes=10,
        embed_dims=32,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=20),
    ),
    train_cfg=dict(
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="FocalLossCost", weight=2.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=30),
)
# As DINO is trained: a lower rate, gradients clipped to a tenth.
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=1e-3,
        total_steps=10,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
        pct_start=0.25,
    )
]
