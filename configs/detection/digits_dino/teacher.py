# Its teacher: twice as wide, on a backbone four times as wide.
_base_ = "student.py"
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    encoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
        )
    ),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64),
            cross_attn_cfg=dict(embed_dims=64),
            ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
        )
    ),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(embed_dims=64),
)
