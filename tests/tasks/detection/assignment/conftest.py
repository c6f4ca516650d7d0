import copy

import pytest
import torch

GIOU = dict(type="GIoULoss", loss_weight=1.3)
IOU = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=0.5)
# PAA's candidates.
OVERLAP = dict(
    type="MaxIoUAssigner", pos_iou_thr=0.1, neg_iou_thr=0.1, min_pos_iou=0, ignore_iof_thr=-1
)


@pytest.fixture(scope="session")
def built():
    """Models that were built once, to be copied."""
    return {}


@pytest.fixture
def detector(tiny, built):
    """A small detector of a kind whose outputs are spread out, in eval mode."""

    def make(kind, seed=0, head=None, border=-1, **changes):
        key = repr((kind, seed, head, border, changes))
        if key not in built:
            built[key] = build(kind, seed, head or {}, border, changes)
        return copy.deepcopy(built[key])

    def build(kind, seed, head, border, changes):
        if kind in ("PAA", "LAD"):
            paa = dict(type=f"{kind}Head", reg_decoded_bbox=True, loss_bbox=GIOU)
            config = tiny.model("ATSS", **{**paa, "loss_centerness": IOU, **head}, **changes)
            config["type"] = "PAA"
            config["train_cfg"]["assigner"] = OVERLAP
        else:
            # mmdet's own ATSS compares decoded boxes.
            more = dict(reg_decoded_bbox=True) if kind == "ATSS" else {}
            config = tiny.model(kind, **{**more, **head}, **changes)
        config["train_cfg"]["allowed_border"] = border
        model = tiny.build(config, seed)
        generator = torch.Generator().manual_seed(seed + 10)
        for name, parameter in model.bbox_head.named_parameters():
            if parameter.ndim == 4:
                parameter.data.normal_(0, 0.15, generator=generator)
            elif "scale" in name:
                parameter.data.uniform_(0.5, 1.5, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def batch(tiny, detector, built):
    """Images and annotations, the last image without an object."""
    if "batch" not in built:
        built["batch"] = tiny.batch(detector("GFL"), "0", "1", "2", "3")
    return copy.deepcopy(built["batch"])
