"""What the layers of encoders attend to, drawn side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from ...core.errors import ConfigError, ShapeError

__all__ = ["Panel", "attention_distance", "attention_maps", "plot_attention"]

_INK, _COLOURS = "#333333", "Blues"


@dataclass(frozen=True)
class Panel:
    """One heat map.

    Attributes:
        title: Text above it.
        weights: Who (rows) attends to whom (columns), shape ``(tokens, tokens)``; a row sums to 1.
    """

    title: str
    weights: Tensor


def attention_maps(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what each layer attends to, as a mean over its heads.

    Args:
        model: A model of transformers with ``attn_implementation="eager"``; run as it is, so in
            training mode with dropout.
        batch: What it takes, for one text without padding.

    Returns:
        One map a layer, from the first on, each of shape ``(tokens, tokens)``.

    Raises:
        ConfigError: The model returns no attention maps.
        ShapeError: The batch holds several texts.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(
        ...     BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                intermediate_size=8, vocab_size=20, attn_implementation="eager")).eval()
        >>> maps = attention_maps(model, {"input_ids": torch.tensor([[1, 2, 3]])})
        >>> len(maps), maps[0].shape
        (2, torch.Size([3, 3]))
    """
    with torch.no_grad():
        found = model(**batch, output_attentions=True).attentions
    if not found or any(layer is None for layer in found):
        raise ConfigError(
            f"{type(model).__name__} returns no attention maps; load it with "
            "attn_implementation='eager'."
        )
    if found[0].shape[0] != 1:
        raise ShapeError(f"Expected a batch of one text to draw, got {found[0].shape[0]}.")
    return [layer[0].float().mean(dim=0) for layer in found]


def attention_distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the total variation between two attention maps, a mean over the rows.

    Args:
        ours: Shape ``(tokens, tokens)``; a row sums to 1.
        theirs: The same.

    Returns:
        The share of attention that would have to go elsewhere: 0 where the maps are equal, 1 where
        no token attends to what it attends to in the other.

    Raises:
        ShapeError: The maps are of different shapes.

    Example:
        >>> attention_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.75, 0.25]]))
        0.25
    """
    if ours.shape != theirs.shape:
        raise ShapeError(
            f"Expected two maps of one shape, got {tuple(ours.shape)} and {tuple(theirs.shape)}."
        )
    return ((ours - theirs).abs().sum(dim=-1) / 2).mean().item()


def plot_attention(rows: Sequence[Sequence[Panel]], tokens: Sequence[str]) -> bytes:
    """Draw attention maps of one text in a grid, all on one scale of colours.

    Args:
        rows: The maps, as many in each row.
        tokens: The text's tokens, which label both axes.

    Returns:
        A PNG image. The scale's root is taken, so that faint attention can be seen.

    Raises:
        ShapeError: A map has not as many rows and columns as there are tokens.
    """
    for panel in (panel for row in rows for panel in row):
        if panel.weights.shape != (len(tokens), len(tokens)):
            raise ShapeError(
                f"{panel.title!r} has the shape {tuple(panel.weights.shape)}, but there are "
                f"{len(tokens)} tokens; expected a row and a column for each."
            )
    most = max(panel.weights.max().item() for row in rows for panel in row)
    canvas = Canvas(figsize=(4.3 * len(rows[0]), 4.3 * len(rows)), layout="constrained")
    grid = canvas.subplots(len(rows), len(rows[0]), squeeze=False)
    places = range(len(tokens))
    size = min(7.0, 240.0 / len(tokens))  # points; a label as high as its row
    norm = PowerNorm(0.5, vmin=0.0, vmax=most)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            axes.imshow(panel.weights.cpu().numpy(), cmap=_COLOURS, norm=norm)
            axes.set_title(panel.title, fontsize=10, color=_INK, loc="left")
            axes.set_xticks(places, tokens, rotation=90, fontsize=size, color=_INK)
            axes.set_yticks(places, tokens, fontsize=size, color=_INK)
            axes.tick_params(length=0, pad=1)
            for spine in axes.spines.values():
                spine.set_visible(False)
    scale = ScalarMappable(norm, _COLOURS)
    bar = canvas.colorbar(scale, ax=grid, shrink=0.5, aspect=40, pad=0.01)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]  (a spine, which is not typed)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()
