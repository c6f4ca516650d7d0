"""Gradient penalty of a critic (Gulrajani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from ..errors import ConfigError, DistillError, ShapeError
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean

Kind = Literal["mixed", "real", "fake"]


def gradient_penalty(
    critic: Callable[..., object],
    real: Tensor | None = None,
    fake: Tensor | None = None,
    *,
    kind: Kind = "mixed",
    target: float = 1.0,
    condition: object = None,
    one_sided: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    r"""Keep the slope of a critic near a target, at points between real and generated samples.

    .. math::
        L = \mathbb{E}_{\hat x} \big( \lVert \nabla_{\hat x} D(\hat x) \rVert_2 - \gamma \big)^2,
        \qquad \hat x = (1 - \alpha) x + \alpha \tilde x, \qquad \alpha \sim U(0, 1)

    with one :math:`\alpha` a sample. The penalty is differentiated by the critic's parameters, so
    the critic must be differentiable twice. The gradient is that of the sum of all scores of a
    sample: a critic with a map or with several outputs is penalised by the slope of their sum.

    The critic is run once more, in float32 also under autocast. Use no batch norm in it: it would
    tie the samples together and its statistics would see the mixed ones. Neither samples nor
    parameters are changed, and no gradient flows to the samples.

    `kind="real", target=0` is the zero-centred penalty on real samples,
    :math:`\mathbb{E}\, \lVert \nabla D(x) \rVert^2`; what is called R1 is half of it times a
    weight.

    Args:
        critic: From samples to scores, a tensor or a (nested) list of them.
        real: Real samples (B, ...).
        fake: Generated samples of the same shape. Only what `kind` needs must be given.
        kind: Where the slope is looked at: `"mixed"`, `"real"` or `"fake"`.
        target: :math:`\gamma`; 1 in the paper.
        condition: Handed to the critic as its second argument if it is not None, and not
            differentiated by.
        one_sided: Only a slope above the target costs.
        generator: Random numbers for :math:`\alpha`, on the device of the samples.

    Returns:
        A scalar >= 0. The paper's weight is 10, which belongs to the recipe. Where the slope is
        exactly 0 the direction to change it in is unknown, and the gradient is 0.

    Raises:
        ShapeError: If the samples that `kind` needs are missing or differ in shape, or the critic
            returns something else than tensors.
        ConfigError: If `kind` is unknown or `target` is negative.
        DistillError: If the critic's output does not depend on its input: a `detach` or `no_grad`
            inside it, or it ignores the samples.

    Reference:
        Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville: Improved Training of Wasserstein GANs,
        NeurIPS 2017 (arXiv 1704.00028); Mescheder, Geiger, Nowozin: Which Training
        Methods for GANs do actually Converge?, ICML 2018 (arXiv 1801.04406) for R1.

    Lecture:
        Generative adversarial networks

    When it helps:
        With the Wasserstein objective, which needs a bounded slope, and wherever a discriminator
        runs away from its generator. Not together with spectral norm, which bounds it already.

    Example:
        >>> import torch
        >>> critic = torch.nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = critic.weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> gradient_penalty(critic, torch.randn(6, 2), torch.randn(6, 2)).item()
        16.0
    """
    _check(kind, target)
    samples = _samples(kind, real, fake)
    with full_precision(samples[0]), torch.no_grad():
        points, *others = (x.detach().to(compute_dtype(*samples)) for x in samples)
        if others:
            shape = (len(points),) + (1,) * (points.ndim - 1)
            alpha = torch.rand(shape, generator=generator, dtype=points.dtype, device=points.device)
            points = torch.lerp(points, others[0], alpha)
    with full_precision(points):
        slope = _slope(critic, points.detach().requires_grad_(), condition)
        length = slope.flatten(1)
        if target == 0:
            return weighted_mean(length.square().sum(1))
        excess = _norm(length) - target
        return weighted_mean((excess.clamp(min=0) if one_sided else excess).square())


def _samples(kind: Kind, real: Tensor | None, fake: Tensor | None) -> list[Tensor]:
    wanted = {"mixed": ("real", "fake"), "real": ("real",), "fake": ("fake",)}[kind]
    given = {"real": real, "fake": fake}
    found = [sample for name in wanted if (sample := given[name]) is not None]
    if len(found) < len(wanted):
        missing = [name for name in wanted if given[name] is None]
        raise ShapeError(f"kind={kind!r} needs {' and '.join(missing)} samples, got none.")
    if found[0].shape != found[-1].shape:
        raise ShapeError(
            "real and fake samples are mixed one by one and must have the same shape, got real "
            f"{tuple(found[0].shape)} and fake {tuple(found[-1].shape)}. Cut the larger batch, or "
            "use kind='real'."
        )
    if found[0].ndim < 2:
        raise ShapeError(f"samples must be (B, ...), got shape {tuple(found[0].shape)}.")
    return found


def _slope(critic: Callable[..., object], points: Tensor, condition: object) -> Tensor:
    # Also where gradients are off, for a value to log.
    graph = torch.is_grad_enabled()
    if isinstance(condition, Tensor):
        condition = condition.detach()
    with torch.enable_grad():
        scores = critic(points) if condition is None else critic(points, condition)
        total = _total(scores)
    if total.requires_grad:
        (slope,) = torch.autograd.grad(total, points, create_graph=graph, allow_unused=True)
        if slope is not None:
            return slope
    raise DistillError(
        "the critic's output does not depend on its input, so it has no slope to penalise. Look "
        "for a detach() or no_grad() inside it, and for samples it does not use."
    )


def _total(scores: object) -> Tensor:
    if isinstance(scores, Tensor):
        return scores.to(compute_dtype(scores)).sum()
    if isinstance(scores, list | tuple) and scores:
        total = _total(scores[0])
        for more in scores[1:]:
            total = total + _total(more)
        return total
    raise ShapeError(
        "the critic must return a tensor of scores or a list of them, got "
        f"{type(scores).__name__}{' (empty)' if isinstance(scores, list | tuple) else ''}. Wrap it "
        "in a function that does."
    )


def _norm(rows: Tensor) -> Tensor:
    """Length of every row; the gradient is 0 where it is 0, and right where squares underflow."""
    if rows.shape[1] == 0:
        return rows.sum(1)
    scale = rows.detach().abs().amax(1, keepdim=True)
    alive = scale > 0
    squares = (rows / scale.where(alive, 1.0)).square().sum(1, keepdim=True)
    return (squares.where(alive, 1.0).sqrt() * scale).squeeze(1)


def _check(kind: str, target: float) -> None:
    check_choice("kind", kind, get_args(Kind))
    if not 0 <= target < math.inf:
        raise ConfigError(f"target must be a finite number >= 0, got {target}.")


class GradientPenalty(nn.Module):
    """Module form of :func:`gradient_penalty`: what is fixed here, the samples in the call.

    Example:
        >>> import torch
        >>> GradientPenalty(target=0.0, kind="real")(lambda x: 2 * x, torch.randn(3, 1)).item()
        4.0
    """

    def __init__(
        self, *, kind: Kind = "mixed", target: float = 1.0, one_sided: bool = False
    ) -> None:
        super().__init__()
        _check(kind, target)
        self.kind: Kind = kind
        self.target = target
        self.one_sided = one_sided

    def forward(
        self,
        critic: Callable[..., object],
        real: Tensor | None = None,
        fake: Tensor | None = None,
        condition: object = None,
        generator: Generator | None = None,
    ) -> Tensor:
        return gradient_penalty(
            critic,
            real,
            fake,
            kind=self.kind,
            target=self.target,
            condition=condition,
            one_sided=self.one_sided,
            generator=generator,
        )

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, target={self.target}, one_sided={self.one_sided}"
