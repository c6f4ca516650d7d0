"""The switches amp, channels_last and compile with every sort of detector."""

from __future__ import annotations

from typing import Any

import pytest
from switched_runs import SwitchedRuns, combinations

KINDS = ("plain", "dense", "two_stage", "queries")

HINT = dict(student="neck", loss="FeatureImitation", adapter="conv1x1", weight=0.5, name="hint")
ROI = dict(
    student="outputs.roi_cls",
    loss="WeightedSoftCrossEntropy",
    background=-1,
    weight=0.5,
    name="roi",
)


def config(tiny: Any, kind: str) -> dict[str, Any]:
    if kind == "plain":
        return tiny.config()
    if kind == "dense":
        return tiny.config(distill=tiny.distill())
    if kind == "two_stage":
        return tiny.config(
            tiny.model("FasterRCNN"), distill=tiny.distill(HINT, ROI, kind="FasterRCNN")
        )
    model = _deformable_detr(tiny)
    teacher = tiny.save_teacher(_deformable_detr(tiny, seed=2))
    pairs = [dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", name="cls")]
    made = tiny.config(model, distill=dict(teacher=teacher, pairs=[HINT, *pairs]))
    return made


def _deformable_detr(tiny: Any, seed: int = 1) -> dict[str, Any]:
    """Two layers either side, 20 queries, no dropout."""
    width = 32 if seed == 1 else 48
    attention = dict(embed_dims=width, num_heads=4, num_levels=3, num_points=2, dropout=0.0)
    self_attention = dict(embed_dims=width, num_heads=4, dropout=0.0, batch_first=True)
    ffn = dict(embed_dims=width, feedforward_channels=width, ffn_drop=0.0)
    backbone = {**tiny.model()["backbone"], "norm_eval": True, "out_indices": (1, 2, 3)}
    focal = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)
    encoder = dict(self_attn_cfg=dict(attention, batch_first=True), ffn_cfg=ffn)
    decoder = dict(
        self_attn_cfg=self_attention,
        cross_attn_cfg=dict(attention, batch_first=True),
        ffn_cfg=ffn,
    )
    costs = [dict(type="FocalLossCost", weight=2.0), dict(type="BBoxL1Cost", weight=5.0)]
    return dict(
        type="DeformableDETR",
        data_preprocessor=tiny.model()["data_preprocessor"],
        num_queries=20,
        num_feature_levels=3,
        with_box_refine=False,
        as_two_stage=False,
        backbone=backbone,
        neck=dict(
            type="ChannelMapper",
            in_channels=[16, 32, 64],
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=4),
            num_outs=3,
        ),
        encoder=dict(num_layers=2, layer_cfg=encoder),
        decoder=dict(num_layers=2, return_intermediate=True, layer_cfg=decoder, post_norm_cfg=None),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(
            type="DeformableDETRHead",
            num_classes=3,
            embed_dims=width,
            sync_cls_avg_factor=True,
            loss_cls=focal,
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        train_cfg=dict(assigner=dict(type="HungarianAssigner", match_costs=costs)),
        test_cfg=dict(max_per_img=20),
    )


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> SwitchedRuns:
    return SwitchedRuns(tiny, tmp_path_factory.mktemp("switches"))


@pytest.fixture(scope="module")
def configs(tiny: Any) -> dict[str, Any]:
    return {kind: config(tiny, kind) for kind in KINDS}


@pytest.mark.parametrize(("kind", "switch"), combinations(KINDS))
def test_a_run(runs: SwitchedRuns, configs: dict[str, Any], kind: str, switch: str):
    runs.check(kind, configs[kind], switch)
