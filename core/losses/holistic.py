"""Holistic distillation of segmentation maps, by way of a discriminator (Liu et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..critics import MapCritic, check_architecture
from ..errors import ConfigError, DistillError, ShapeError
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean
from .adversarial import Objective, discriminator_loss, generator_loss
from .gradient_penalty import gradient_penalty


def holistic(
    critic: nn.Module,
    student: Tensor,
    image: Tensor | None = None,
    *,
    objective: Objective = "wgan",
) -> Tensor:
    r"""What a student minimises so that its whole map scores like a teacher's.

    .. math:: L = -\mathbb{E}_I \, D(Q^s \mid I), \qquad Q = \mathrm{softmax}(z)

    averaged over the images, for a discriminator ("critic") D that is trained by
    :func:`holistic_critic` to score the teacher's maps high and the student's low. The value of
    the other objectives is that of :func:`generator_loss`.

    The paper writes the term as :math:`\mathbb{E}_s D(Q^s \mid I) - \mathbb{E}_t D(Q^t \mid I)` and
    subtracts it from the student's sum with a weight of 0.1, in its code too; the critic is to make
    the teacher's score larger than the student's. The teacher's part is constant for the student,
    which leaves the above. The score has no bound and no zero: the value may be negative, and says
    little. Look at the margin of :func:`holistic_critic` instead.

    Paper and code differ about the image: the first judges the map together with it, and so does
    one branch of the authors' repository (probabilities and the resized image, 19 + 3 channels);
    its main branch leaves the image out and sends the logits through a batch norm.

    A map is judged as a whole: pixels whose label is to be ignored count as well.

    Args:
        critic: From (B, C, H, W) to scores, samples on axis 0; a :class:`~..critics.MapCritic`. Its
            parameters get no gradient, and it stays in the mode it is in.
        student: Logits (B, K, H, W).
        image: What the map is judged by, (B, C, H', W') as the student saw it; brought to the map's
            size and put behind its K channels. None judges the map alone.
        objective: `"wgan"` (the paper), `"lsgan"`, `"vanilla"` or `"hinge"`.

    Returns:
        A scalar, of either sign with `"wgan"` and `"hinge"`. It does not depend on the number of
        images, and hardly on their size: the critic's score is a mean over its windows.

    Raises:
        ShapeError: If the logits are not (B, K, H, W), there is a single class (whose probability
            is always 1), or the image is not of the same batch.
        ConfigError: If the objective is unknown.

    Reference:
        Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019, section
        on holistic distillation (arXiv 1903.04197).

    Lecture:
        Semantic segmentation

    When it helps:
        On top of the pixel-wise and pair-wise terms, where single pixels are right but shapes are
        not: thin objects, broken outlines, parts without their whole.

    Example:
        >>> import torch
        >>> critic = torch.nn.Conv2d(2, 1, 1, bias=False)
        >>> _ = critic.weight.data.copy_(torch.tensor([3.0, 1.0]).view(1, 2, 1, 1))
        >>> holistic(critic, torch.zeros(2, 2, 4, 4)).item()
        -2.0
    """
    _check_objective(objective)
    _check_map(student)
    with full_precision(student), _without_gradient(critic):
        maps = student.to(compute_dtype(student)).softmax(1)
        condition = None if image is None else _condition(image, maps)
        return generator_loss(_score(critic, maps, condition), objective=objective)


def holistic_critic(
    critic: nn.Module,
    student: Tensor,
    teacher: Tensor,
    image: Tensor | None = None,
    *,
    objective: Objective = "wgan",
    penalty: float = 10.0,
) -> dict[str, Tensor]:
    r"""What the discriminator of :func:`holistic` minimises.

    .. math::
        L = \mathbb{E}_I \, D(Q^s \mid I) - \mathbb{E}_I \, D(Q^t \mid I) + \lambda \,
            \mathbb{E}_I \big( \lVert \nabla_{\hat Q} D(\hat Q \mid I) \rVert_2 - 1 \big)^2

    with the teacher's maps as the real samples and the student's as the generated ones, and
    :func:`gradient_penalty` at mixtures of the two maps of an image, the image itself being fixed.
    No gradient reaches the student or the teacher.

    The authors' code has both the penalty and, in the critic, spectral norm, either of which bounds
    the slope. Under spectral norm it begins far below 1 and the penalty near its weight: there it
    drives the slope up. `penalty=0` leaves it out, and saves more than half of the step.

    Args:
        critic: As in :func:`holistic`. A batch norm in it would tie the samples together, against
            which the penalty says nothing.
        student: Logits (B, K, H, W) of the forward that the student learns from, the paper's order:
            first the student's step, then the critic's on the same maps.
        teacher: Logits of the same shape.
        image: As in :func:`holistic`.
        objective: As in :func:`holistic`; with the others, :func:`discriminator_loss` replaces the
            difference.
        penalty: :math:`\lambda`; 10 in the authors' code.

    Returns:
        `"loss"`, the sum, to be differentiated by the critic's parameters; `"penalty"`, the
        gradient penalty by itself (0 where it is left out), and `"margin"`, the teacher's mean
        score minus the student's, both without a graph. A margin that stays at 0 is a critic that
        cannot tell the two apart; one that only grows is a critic that the student cannot follow.

    Raises:
        ShapeError: If the shapes differ, the logits are not (B, K, H, W), there is a single class,
            or the image is not of the same batch.
        ConfigError: If the objective is unknown or the penalty negative.

    Reference:
        Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019, section
        on holistic distillation (arXiv 1903.04197); Gulrajani et al.: Improved Training of
        Wasserstein GANs, NeurIPS 2017 (arXiv 1704.00028).

    Lecture:
        Semantic segmentation

    When it helps:
        Always with `holistic`, one step of it after each of the student's, from an optimizer of its
        own.

    Example:
        >>> import torch
        >>> critic = torch.nn.Conv2d(2, 1, 1, bias=False)
        >>> _ = critic.weight.data.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
        >>> student, teacher = torch.tensor([[99.0, 0.0], [0.0, 99.0]]).view(2, 1, 2, 1, 1)
        >>> found = holistic_critic(critic, student, teacher)
        >>> {name: value.item() for name, value in found.items()}
        {'loss': 159.0, 'penalty': 16.0, 'margin': 1.0}
    """
    _check_options(objective, penalty)
    _check_pair(student, teacher)
    with full_precision(student):
        dtype = compute_dtype(student, teacher)
        real, fake = (z.detach().to(dtype).softmax(1) for z in (teacher, student))
        condition = None if image is None else _condition(image, fake)
        score = partial(_score, critic)
        # One critic for scores and slope: without the cache, each forward would take a further step
        # of the spectral norm's power iteration, and be that of another function.
        with parametrize.cached():
            twice = None if condition is None else torch.cat([condition, condition])
            scores = score(torch.cat([real, fake]), twice)
            of_real, of_fake = scores[: len(real)], scores[len(real) :]
            slope = scores.new_zeros(())
            if penalty:
                slope = gradient_penalty(score, real, fake, condition=condition)
        loss = discriminator_loss(of_real, of_fake, objective=objective)
        margin = weighted_mean(of_real.detach()) - weighted_mean(of_fake.detach())
        return {"loss": loss + penalty * slope, "penalty": slope.detach(), "margin": margin}


def _score(critic: nn.Module, maps: Tensor, condition: Tensor | None = None) -> Tensor:
    return critic(maps if condition is None else torch.cat([maps, condition], 1))


def _condition(image: Tensor, maps: Tensor) -> Tensor:
    """The image at the size of the maps, for the critic to judge them by."""
    _check_image(image, maps)
    image = image.detach().to(maps.dtype)
    if image.shape[2:] == maps.shape[2:]:
        return image
    # Eight times smaller: without antialiasing most of its pixels would not be looked at.
    size = list(maps.shape[2:])
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)


def _check_image(image: Tensor, maps: Tensor) -> None:
    if image.ndim != 4 or len(image) != len(maps):
        raise ShapeError(
            f"logits {tuple(maps.shape)} are judged by one image each, (B, C, H', W'), got image "
            f"{tuple(image.shape)}."
        )


@contextmanager
def _without_gradient(critic: nn.Module) -> Iterator[None]:
    """Keep the critic's parameters out of the graph that is made inside."""
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _check_map(student: Tensor) -> None:
    if student.ndim != 4 or student.shape[1] < 2:
        raise ShapeError(
            "expected logits (B, K, H, W) of at least 2 classes, got "
            f"{tuple(student.shape)}. A single class has the probability 1 everywhere: give the "
            "networks one output for the background too."
        )


def _check_pair(student: Tensor, teacher: Tensor) -> None:
    _check_map(student)
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher must have the same shape, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Resize the teacher's "
            "logits to the student's size first."
        )


def _check_objective(objective: str) -> None:
    check_choice("objective", objective, get_args(Objective))


def _check_options(objective: str, penalty: float) -> None:
    _check_objective(objective)
    if not 0 <= penalty < math.inf:
        raise ConfigError(f"penalty must be a finite number >= 0, got {penalty}.")


class Holistic(nn.Module):
    """:func:`holistic` with its own discriminator, `critic`, a :class:`~..critics.MapCritic`.

    The discriminator is made by :meth:`prepare` for the channels of an example batch; a
    :class:`~..distiller.Distiller` does that in its setup. Its parameters are this module's only
    ones, and belong into an optimizer of their own, which steps on :meth:`critic_step_losses` after
    the student's (SGD with learning rate 4e-4 in the authors' code). They are dropped at export.

    Args:
        channels: Width of the critic's first layer.
        layers: How often the critic halves the map.
        attention: Layers of the critic, from 1, that self-attention follows.
        conditional: Whether the map is judged together with the image, as in the paper.
        objective: See :func:`holistic`.
        penalty: Weight of the gradient penalty, see :func:`holistic_critic`.

    Raises:
        ConfigError: If an argument cannot be meant; in use, if it is conditional and gets no image.
        ShapeError: In use, if student, teacher and image do not go together or with the critic.
        DistillError: If it is used before :meth:`prepare`.

    Example:
        >>> import torch
        >>> loss = Holistic(channels=8)
        >>> student = torch.randn(2, 5, 9, 9, requires_grad=True)
        >>> teacher, image = torch.randn(2, 5, 9, 9), torch.randn(2, 3, 72, 72)
        >>> loss.prepare(student, image)
        >>> loss(student, teacher, image).backward()
        >>> student.grad is None, loss.critic.score.weight.grad is None
        (False, True)
        >>> loss.critic_step_losses(student, teacher, image)["loss"].backward()
        >>> loss.critic.score.weight.grad is None
        False
    """

    adversarial: ClassVar[bool] = True  # its parameters are trained against the student
    critic: MapCritic | None

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 4,
        attention: Sequence[int] = (3, 4),
        conditional: bool = True,
        objective: Objective = "wgan",
        penalty: float = 10.0,
    ) -> None:
        super().__init__()
        check_architecture(channels=channels, layers=layers, attention=attention)
        _check_options(objective, penalty)
        self.channels = channels
        self.layers = layers
        self.attention = tuple(attention)
        self.conditional = conditional
        self.objective: Objective = objective
        self.penalty = penalty
        self._counts: tuple[int, int] | None = None
        self.register_module("critic", None)

    def prepare(self, student: Tensor, image: Tensor | None = None) -> None:
        """Make the critic for the channels of an example; a second time, check that it fits.

        Args:
            student: Logits (B, K, H, W). The critic is made on their device.
            image: (B, C, H', W'); not looked at if the loss is not conditional.

        Raises:
            ShapeError: If the critic has been made for other numbers of channels.
            ConfigError: If the loss is conditional and there is no image.
        """
        _check_map(student)
        image = self._judged_by(image)
        if image is not None:
            _check_image(image, student)
        counts = student.shape[1], 0 if image is None else image.shape[1]
        if self._counts is None:
            critic = MapCritic(
                sum(counts), channels=self.channels, layers=self.layers, attention=self.attention
            )
            self.critic = critic.to(student.device, compute_dtype(student)).train(self.training)
            self._counts = counts
        elif self._counts != counts:
            raise ShapeError(
                f"the critic is for {_says(self._counts)}, but got {_says(counts)}. A Holistic "
                "serves one student: make another one."
            )

    def forward(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> Tensor:
        """Return the student's term; the teacher's shape is checked, its values are not used."""
        _check_pair(student, teacher)
        critic, image = self._ready(), self._judged_by(image)
        return holistic(critic, student, image, objective=self.objective)

    def critic_step_losses(
        self, student: Tensor, teacher: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return :func:`holistic_critic`: `"loss"` for the critic's step, and two figures."""
        critic, image = self._ready(), self._judged_by(image)
        return holistic_critic(
            critic, student, teacher, image, objective=self.objective, penalty=self.penalty
        )

    def _ready(self) -> MapCritic:
        if self.critic is None:
            raise DistillError(
                "Holistic has no critic yet. Call prepare(student, image) with an example batch "
                "(Distiller.setup does) before making the optimizers."
            )
        return self.critic

    def _judged_by(self, image: Tensor | None) -> Tensor | None:
        if self.conditional and image is None:
            raise ConfigError(
                "Holistic judges a map together with its image, but got no image. Give it one, or "
                "take conditional=False."
            )
        return image if self.conditional else None

    def extra_repr(self) -> str:
        return (
            f"conditional={self.conditional}, objective={self.objective!r}, penalty={self.penalty}"
        )


def _says(counts: tuple[int, int]) -> str:
    return f"{counts[0]} classes and {counts[1]} image channels"
