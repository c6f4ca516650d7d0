"""What must not matter to a loss: one table for all methods that promise something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taskdistill.core import losses as L

Inputs = dict[str, Tensor]
Change = Callable[[Tensor], Tensor]


def rotated(points: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    square = torch.randn(points.shape[1], points.shape[1], generator=generator, dtype=points.dtype)
    return points @ torch.linalg.qr(square)[0]


# Of one side alone, whichever.
SCALED: dict[str, Change] = {"scaled": lambda x: 3.7 * x}
SHIFTED: dict[str, Change] = {"shifted": lambda x: x + 5}
CHANNELS: dict[str, Change] = {"channels permuted": lambda x: x.flip(1)}
MOVED: dict[str, Change] = {"moved": lambda x: x + x[:1], "rotated": rotated}

MAPS, LOGITS, POINTS = ("fs", "ft"), ("ls", "lt"), ("es", "et")

ONE_SIDE: dict[str, tuple[tuple[str, str], dict[str, Change]]] = {
    "kl_div": (LOGITS, SHIFTED),
    "soft_cross_entropy": (LOGITS, SHIFTED),
    "weighted_soft_cross_entropy": (LOGITS, SHIFTED),
    "dist": (LOGITS, SHIFTED),
    "logit_standardisation": (LOGITS, SCALED | SHIFTED),
    "attention_transfer": (MAPS, SCALED | CHANNELS),
    "neuron_selectivity": (MAPS, SCALED | CHANNELS),
    "factor_transfer": (MAPS, SCALED),
    "pair_wise": (MAPS, SCALED | CHANNELS),
    "similarity_preserving": (POINTS, SCALED | {"rotated": rotated}),
    "rkd_distance": (POINTS, SCALED | MOVED),
    "rkd_angle": (POINTS, SCALED | MOVED),
    "pearson_distance": (MAPS, SCALED | SHIFTED),
    "channel_wise_distillation": (MAPS, SHIFTED),
}

# Of both sides in the same way.
SWAPPED_ROWS: dict[str, Change] = {"samples permuted": lambda x: x.flip(0)}
SPACE: dict[str, Change] = {"positions permuted": lambda x: x.flip(2).mT.contiguous()}

BOTH_SIDES: dict[str, tuple[tuple[str, str], dict[str, Change]]] = {
    "kl_div": (LOGITS, SWAPPED_ROWS | CHANNELS),
    "l2_logits": (LOGITS, SWAPPED_ROWS | CHANNELS | SHIFTED),
    "dist": (LOGITS, SWAPPED_ROWS | CHANNELS),
    "attention_transfer": (MAPS, SWAPPED_ROWS | SPACE),
    "neuron_selectivity": (MAPS, SWAPPED_ROWS | SPACE),
    "factor_transfer": (MAPS, SWAPPED_ROWS | SPACE | CHANNELS),
    "activation_boundaries": (MAPS, SWAPPED_ROWS | SPACE | CHANNELS),
    "pair_wise": (MAPS, SWAPPED_ROWS | SPACE),
    "channel_wise_distillation": (MAPS, SWAPPED_ROWS | SPACE | CHANNELS),
    "feature_imitation": (MAPS, SWAPPED_ROWS | SPACE | CHANNELS | SHIFTED),
    "pearson_distance": (MAPS, SWAPPED_ROWS | SPACE | CHANNELS),
    "similarity_preserving": (POINTS, SWAPPED_ROWS),
    "rkd_distance": (POINTS, SWAPPED_ROWS),
    "rkd_angle": (POINTS, SWAPPED_ROWS),
}


def cases(table: dict[str, tuple[tuple[str, str], dict[str, Change]]]) -> list[tuple[str, str]]:
    return [(name, change) for name, (_, changes) in table.items() for change in changes]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("name", "change"), cases(ONE_SIDE))
def test_of_one_side(name: str, change: str, side: int, golden_cls: Inputs):
    names, changes = ONE_SIDE[name]
    pair = [golden_cls[key].double() for key in names]
    expected = getattr(L, name)(*pair)
    assert expected > 0
    pair[side] = changes[change](pair[side])
    torch.testing.assert_close(getattr(L, name)(*pair), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("name", "change"), cases(BOTH_SIDES))
def test_of_both_sides(name: str, change: str, golden_cls: Inputs):
    names, changes = BOTH_SIDES[name]
    pair = [golden_cls[key].double() for key in names]
    expected = getattr(L, name)(*pair)
    changed = [changes[change](tensor) for tensor in pair]
    torch.testing.assert_close(getattr(L, name)(*changed), expected, rtol=1e-7, atol=0)


def test_the_flow_between_layers_does_not_depend_on_the_order_of_channels_or_places(
    golden_cls: Inputs,
):
    ours, theirs = [golden_cls[k].double() for k in ("fs", "f2s")], ["ft", "f2t"]
    their = [golden_cls[k].double() for k in theirs]
    expected = L.fsp(tuple(ours), tuple(their))
    for change in (lambda x: x.flip(1), lambda x: x.flip(2), lambda x: x.flip(0)):
        value = L.fsp(tuple(map(change, ours)), tuple(map(change, their)))
        torch.testing.assert_close(value, expected)
