"""Ensembles of networks, as the last step of born-again training (Furlanello et al. 2018).

A generation learns from the one before it by labels and
:class:`~taskdistill.core.losses.SoftCrossEntropy` at T = 1 with equal weights. The paper's two
ablations of what a teacher says are losses too:
:class:`~taskdistill.core.losses.ConfidenceWeightedCrossEntropy` and
:class:`~taskdistill.core.losses.PermutedDarkKnowledge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError, did_you_mean
from ..losses._reduction import compute_dtype, full_precision, resolve_axis

__all__ = ["Average", "check_average", "ensemble_logits"]

Average = Literal["probabilities", "logits"]


def check_average(average: str) -> None:
    """Raise ConfigError unless `average` is one of the two ways to average."""
    if average not in get_args(Average):
        raise ConfigError(
            f"average must be one of {', '.join(map(repr, get_args(Average)))}, got {average!r}."
            f"{did_you_mean(str(average), get_args(Average))}"
        )


def ensemble_logits(
    logits: Sequence[Tensor], *, average: Average = "probabilities", dim: int = 1
) -> Tensor:
    r"""Logits of the ensemble of several networks.

    .. math:: z = \log \frac{1}{n} \sum_i \mathrm{softmax}(z_i)
              \qquad\text{or}\qquad z = \frac{1}{n} \sum_i z_i

    The first is the mean of the networks' probabilities, which is what "averaging the predictions"
    of born-again networks means; it is computed in log space, so that no class becomes minus
    infinity. The second, the mean of the logits, is the normalised geometric mean of the
    probabilities. Averaging the *weights* of networks that were initialised separately is neither,
    and gives nonsense.

    Args:
        logits: One tensor a network, (B, C) or with further axes, all of one shape.
        average: `"probabilities"`, or `"logits"`.
        dim: Axis of the classes.

    Returns:
        Logits of that shape, in float32 (float64 stays). With `"probabilities"` they are
        log-probabilities: their softmax is the mean exactly. The gradient reaches every network.

    Raises:
        ConfigError: If there is no network, or `average` is unknown.
        ShapeError: If the shapes differ, or `dim` is no axis.

    Reference:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born-Again Neural Networks, ICML 2018,
        section "Sequence of Teaching Selves" (arXiv 1805.04770).

    Example:
        >>> import torch
        >>> sure, unsure = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> ensemble_logits([sure, unsure]).softmax(1)
        tensor([[0.7500, 0.2500]])
        >>> ensemble_logits([sure, unsure], average="logits")
        tensor([[500.,   0.]])
    """
    check_average(average)
    if not logits:
        raise ConfigError("An ensemble needs the logits of at least one network, got none.")
    shapes = [tuple(each.shape) for each in logits]
    if len(set(shapes)) > 1:
        raise ShapeError(
            f"The networks of an ensemble give logits of one shape, got {shapes}. They need the "
            "same classes and the same images."
        )
    axis = resolve_axis(logits[0], dim)
    with full_precision(logits[0]):
        stacked = torch.stack([each.to(compute_dtype(*logits)) for each in logits])
        if average == "logits":
            return stacked.mean(0)
        return stacked.log_softmax(axis + 1).logsumexp(0) - math.log(len(logits))
