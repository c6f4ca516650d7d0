"""Factor transfer: the teacher's features paraphrased, the student's translated."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, DistillError, ShapeError
from ._autograd import by_hand, with_gradient
from ._backend import compilable, use_compiled
from ._maps import (
    channel_energy,
    fit,
    row_blocks,
    safe_sqrt,
    smallest,
    unit,
    workspace,
)
from ._reduction import check_choice, full_precision, matched_pair, weighted_mean

Form = Literal["paper", "code", "attention"]
ReconstructionForm = Literal["paper", "code"]


def factor_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    p: int = 1,
    form: Form = "paper",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Distance of two factors, each scaled to length 1.

    .. math:: L = (HW)^{\frac{1}{2} - \frac{1}{p}} \left\lVert \frac{F_S}{\lVert F_S \rVert_2} -
        \frac{F_T}{\lVert F_T \rVert_2} \right\rVert_p

    per sample, all of its channels and positions as one vector; averaged over the samples. The
    teacher's factor comes from a :class:`Paraphraser`, trained beforehand to reconstruct the
    teacher's features and then frozen; the student's from a :class:`Translator`, trained together
    with the student. Both are dropped at the end.

    The paper has the norm alone. The 1-norm of vectors of length 1 grows with the square root of
    their number of elements, so we divide by the square root of H * W: times that root this is
    the paper's value (with p = 2 it is the paper's as it stands). `form="code"` is the authors'
    code, the mean of the absolute differences (p = 1) or of the squared ones (p = 2) over channels
    and positions: with p = 1, `"paper"` is C * sqrt(H * W) times `"code"`, so that their weight of
    500 becomes 500 / (C * sqrt(H * W)). `form="attention"`, from another common collection,
    compares something else: the maps of the channels' mean squares, scaled to length 1, by the
    same mean over positions.

    Args:
        student: The student's factor, (B, C, H, W), or any (B, C, ...).
        teacher: The teacher's factor, the same shape.
        p: 1 (as in the authors' code) or 2.
        form: `"paper"`, `"code"` or `"attention"`, see above. Only the value of `"paper"` does not
            depend on the size of the map.
        weight: (B,), one number a sample.
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar >= 0. A factor of zeros (float32: nothing above 1e-16) stays zeros and gets no
        gradient. The gradient is computed together with the value: there are no second
        derivatives outside the reference backend, backward with `create_graph=True` raises
        DistillError.

    Raises:
        ShapeError: If the shapes differ, or a factor has no channels or positions.
        ConfigError: If `p` or `form` is none of the above.

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer,
        NeurIPS 2018 (arXiv 1802.04977).

    Lecture:
        Intermediate features

    When it helps:
        When student and teacher are built so differently that their features cannot be compared
        as they are, and a short first stage on the teacher alone can be afforded.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[3.0]], [[4.0]]]])
        >>> teacher = torch.tensor([[[[5.0]], [[0.0]]]])
        >>> round(factor_transfer(student, teacher).item(), 4)
        1.2
        >>> round(factor_transfer(student, teacher, form="code").item(), 4)
        0.6
    """
    _check_options(p, form)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        if student.ndim < 2 or 0 in student.shape[1:]:
            raise ShapeError(
                "a factor must be (B, C) or (B, C, H, W), with channels and positions, got shape "
                f"{tuple(student.shape)}."
            )
        positions = student.shape[2:].numel()
        if form == "attention":
            least = smallest(student.dtype) ** 2
            shape = (*student.shape[:2], positions)
            map_s, map_t = (
                unit(channel_energy(x.reshape(shape)), least) for x in (student, teacher)
            )
            values = _plain_distance(map_s, map_t, p) / positions
        else:
            values = _distance(student.flatten(1), teacher.flatten(1), p)
            if form == "code":
                values = values / student.shape[1:].numel()
            else:
                values = values / positions**0.5 if p == 1 else safe_sqrt(values)
        return weighted_mean(values, weight, total)


def _plain_distance(student: Tensor, teacher: Tensor, p: int) -> Tensor:
    difference = student - teacher
    return (difference.abs() if p == 1 else difference.square()).sum(1)


def _distance(student: Tensor, teacher: Tensor, p: int) -> Tensor:
    """Sum of |difference|^p of the rows of (B, n), which are brought to length 1 first."""
    if not by_hand():
        least = smallest(student.dtype)
        return _plain_distance(unit(student, least), unit(teacher, least), p)
    # A factor comes out of a translator that keeps other tensors, so it may go; its gradient is
    # formed while the rows are in the cache, and held alone.
    with torch.no_grad():
        body = _distance_at_once if use_compiled() else _distance_in_blocks
        values, slope = body(student, teacher, p)
    return with_gradient(values, (student,), (slope,), (len(values), 1))


def _distance_in_blocks(student: Tensor, teacher: Tensor, p: int) -> tuple[Tensor, Tensor]:
    slope = torch.empty_like(student, memory_format=torch.contiguous_format)
    values = student.new_empty(len(student))
    spaces = workspace(student, 2, row_blocks)
    for rows in row_blocks(student):
        s, t, unit_s = student[rows], teacher[rows], slope[rows]
        difference, outer = (fit(space, s) for space in spaces)
        # Not vector_norm: over a long row of float32 it is off by 1e-5, a sum by 1e-7.
        length = _length(torch.mul(s, s, out=outer))
        torch.div(s, length, out=unit_s)
        length_t = _length(torch.mul(t, t, out=outer))
        torch.addcdiv(unit_s, t, length_t, value=-1, out=difference)
        if p == 1:
            torch.sign(difference, out=outer)
            values[rows] = difference.abs_().sum(1)
        else:
            values[rows] = torch.mul(difference, difference, out=outer).sum(1)
            torch.mul(difference, 2, out=outer)
        # The length is constant: what points along the unit vector falls away.
        along = torch.mul(outer, unit_s, out=difference).sum(1, keepdim=True)
        torch.addcmul(outer, unit_s, along, value=-1, out=unit_s).div_(length)
    return values, slope


@compilable
def _distance_at_once(student: Tensor, teacher: Tensor, p: int) -> tuple[Tensor, Tensor]:
    length = _length(student * student)
    unit_s = student / length
    difference = unit_s - teacher / _length(teacher * teacher)
    outer = difference.sign() if p == 1 else 2 * difference
    along = (outer * unit_s).sum(1, keepdim=True)
    values = difference.abs() if p == 1 else difference.square()
    return values.sum(1), (outer - unit_s * along) / length


def _length(squares: Tensor) -> Tensor:
    """Euclidean length of the rows, (B, 1); infinite for a row of zeros, which so stays zeros."""
    length = squares.sum(1, keepdim=True).sqrt()
    return F.threshold(length, smallest(squares.dtype), torch.inf)


def _check_options(p: int, form: str) -> None:
    if p not in (1, 2):
        raise ConfigError(f"p must be 1 or 2, got {p}.")
    check_choice("form", form, get_args(Form))


class FactorTransfer(nn.Module):
    """Module form of :func:`factor_transfer`, same arguments and defaults.

    Example:
        >>> import torch
        >>> FactorTransfer(p=2)(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item()
        0.0
    """

    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(self, *, p: int = 1, form: Form = "paper") -> None:
        super().__init__()
        _check_options(p, form)
        self.p = p
        self.form: Form = form

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return factor_transfer(
            student, teacher, p=self.p, form=self.form, weight=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, form={self.form!r}"


def _layers(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: list[int], batch_norm: bool
) -> nn.Sequential:
    """3x3 layers of these widths, each with a LeakyReLU, the last one included."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers.append(kind(before, after, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def _check_widths(**widths: int) -> None:
    for name, width in widths.items():
        if width < 1:
            raise ConfigError(f"{name} must be at least 1, got {width}.")


def _check_map(feature: Tensor, channels: int) -> None:
    if feature.ndim != 4 or feature.shape[1] != channels:
        raise ShapeError(
            f"expected a map (B, {channels}, H, W), got shape {tuple(feature.shape)}. Set the "
            "number of channels to that of the tapped layer."
        )


class Paraphraser(nn.Module):
    """Autoencoder of the teacher's features; its code is the teacher's factor.

    Three 3x3 convolutions, the second of which changes the number of channels, and three
    transposed ones back, each followed by a LeakyReLU of slope 0.1. The size of the map stays.

    Train it with :func:`paraphraser_loss` on features of the frozen teacher, a few epochs; then
    freeze it: `paraphraser.eval().requires_grad_(False)`.

    Args:
        channels: Channels of the teacher's map.
        rate: Channels of the factor as a share of `channels` (k in the paper), rounded. 0.5 as in
            the authors' code.
        batch_norm: Batch normalisation after every convolution. The authors' code has none; others
            do.

    Raises:
        ConfigError: If `channels` is below 1 or `rate` leaves no channel.
        ShapeError: In use, if the map has another number of channels.

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018 (arXiv 1802.04977).

    Example:
        >>> import torch
        >>> paraphraser = Paraphraser(64, rate=0.5)
        >>> feature = torch.randn(2, 64, 8, 8)
        >>> paraphraser(feature).shape, paraphraser.reconstruct(feature).shape
        (torch.Size([2, 32, 8, 8]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(self, channels: int, rate: float = 0.5, *, batch_norm: bool = False) -> None:
        super().__init__()
        _check_widths(channels=channels)
        if not 0 < rate <= 16 or round(channels * rate) < 1:
            raise ConfigError(
                f"rate must leave the factor at least one of {channels} channels, and at most 16 "
                f"times as many, got {rate}."
            )
        self.channels = channels
        self.factor_channels = round(channels * rate)
        widths = [channels, channels, self.factor_channels, self.factor_channels]
        self.encoder = _layers(nn.Conv2d, widths, batch_norm)
        self.decoder = _layers(nn.ConvTranspose2d, widths[::-1], batch_norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Return the factor, (B, factor_channels, H, W)."""
        _check_map(feature, self.channels)
        return self.encoder(feature)

    def reconstruct(self, feature: Tensor) -> Tensor:
        """Return the features as they come back from the factor."""
        return self.decoder(self(feature))


class Translator(nn.Module):
    """From the student's features to a factor of the teacher's size: three 3x3 convolutions.

    Built like the encoder of a :class:`Paraphraser`. Its parameters are trained together with the
    student's.

    Args:
        in_channels: Channels of the student's map.
        factor_channels: `paraphraser.factor_channels`.
        batch_norm: Batch normalisation after every convolution. The authors' code has none.

    Raises:
        ConfigError: If a number of channels is below 1.
        ShapeError: In use, if the map has another number of channels.

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018 (arXiv 1802.04977).

    Example:
        >>> import torch
        >>> Translator(16, 32)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, in_channels: int, factor_channels: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        _check_widths(in_channels=in_channels, factor_channels=factor_channels)
        self.in_channels = in_channels
        self.factor_channels = factor_channels
        widths = [in_channels, in_channels, factor_channels, factor_channels]
        self.encoder = _layers(nn.Conv2d, widths, batch_norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Return the factor, (B, factor_channels, H, W)."""
        _check_map(feature, self.in_channels)
        return self.encoder(feature)


def paraphraser_loss(
    paraphraser: Paraphraser,
    feature: Tensor,
    *,
    form: ReconstructionForm = "paper",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Reconstruction error that a paraphraser is trained with.

    .. math:: L = \lVert x - P(x) \rVert_2^2

    summed over the channels, averaged over the positions: the paper's sum over a sample is H * W
    times this value. `form="code"` is the authors' code, the mean of the absolute differences over
    channels, too.

    Args:
        paraphraser: What is trained.
        feature: The teacher's map, (B, C, H, W). It gets no gradient.
        form: `"paper"` or `"code"`.
        weight: One number a position, (B, H, W).
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0.

    Raises:
        ShapeError: If the map has another number of channels than the paraphraser.
        ConfigError: If the form is unknown.

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018 (arXiv 1802.04977).

    Example:
        >>> import torch
        >>> paraphraser = Paraphraser(4)
        >>> loss = paraphraser_loss(paraphraser, torch.randn(2, 4, 8, 8))
        >>> loss.backward()
        >>> paraphraser.encoder[0].weight.grad is None
        False
    """
    check_choice("form", form, get_args(ReconstructionForm))
    feature = feature.detach()
    reconstruction = paraphraser.reconstruct(feature)
    with full_precision(feature):
        reconstruction, feature = matched_pair(reconstruction, feature)
        difference = reconstruction - feature
        values = difference.square().sum(1) if form == "paper" else difference.abs().mean(1)
        return weighted_mean(values, weight, total)


class ParaphrasedFactorTransfer(nn.Module):
    r"""Factor transfer whole: paraphraser, translator and :func:`factor_transfer` in one line.

    Which of them is trained depends on the stage of a recipe:

    .. math:: L = \begin{cases} \lambda \lVert x - P(x) \rVert^2 & \text{in the stage
        \texttt{paraphrase}} \\ d(T(s), F(t)) & \text{in every other} \end{cases}

    with the paraphraser P, its encoder F, the translator T and the distance d. Afterwards the
    paraphraser gets no gradient any more. Without stages, or where none has that name, both are
    added up in every step; the factor gets no gradient from the student's term then either.

    ::

        distill = dict(
            stages=[dict(name="paraphrase", until=5, task_weight=0, train=[]),
                    dict(name="transfer")],
            pairs=[dict(student="layer3", loss="ParaphrasedFactorTransfer", weight=1.0)])

    Args:
        channels: Channels of the teacher's map and of the student's. None: taken from an example
            by :meth:`fit`, as a recipe does.
        rate: See :class:`Paraphraser`.
        p: See :func:`factor_transfer`.
        form: Likewise.
        batch_norm: See :class:`Paraphraser`; of the translator, too.
        reconstruction: What :func:`paraphraser_loss` is multiplied by, beside the pair's weight.
        reconstruction_form: See :func:`paraphraser_loss`.
        paraphrase: Name of the stage that trains the paraphraser.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: If the maps are none.
        DistillError: When called before its channels are known.

    Reference:
        Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018 (arXiv 1802.04977), sections
        3.1 to 3.3.

    Example:
        >>> import torch
        >>> loss = ParaphrasedFactorTransfer((16, 64))
        >>> student, teacher = torch.randn(2, 16, 4, 4), torch.randn(2, 64, 4, 4)
        >>> loss(student, teacher, stage="paraphrase").backward()
        >>> loss.paraphraser.encoder[0].weight.grad.abs().sum().item() > 0
        True
        >>> loss.translator.encoder[0].weight.grad.abs().sum().item()
        0.0
    """

    any_channels: ClassVar[bool] = True  # the translator is the projection
    per_tensor: ClassVar[bool] = True
    per_position: ClassVar[bool] = False

    def __init__(
        self,
        channels: tuple[int, int] | None = None,
        *,
        rate: float = 0.5,
        p: int = 1,
        form: Form = "paper",
        batch_norm: bool = False,
        reconstruction: float = 1.0,
        reconstruction_form: ReconstructionForm = "paper",
        paraphrase: str = "paraphrase",
    ) -> None:
        super().__init__()
        _check_options(p, form)
        check_choice("reconstruction_form", reconstruction_form, get_args(ReconstructionForm))
        if not 0 < rate <= 16:
            raise ConfigError(f"rate must be above 0 and at most 16, got {rate}.")
        if not 0 < reconstruction < torch.inf:
            raise ConfigError(f"reconstruction must be a number above 0, got {reconstruction}.")
        self.rate, self.p, self.batch_norm = rate, p, batch_norm
        self.form: Form = form
        self.reconstruction = reconstruction
        self.reconstruction_form: ReconstructionForm = reconstruction_form
        self.paraphrase = paraphrase
        self.paraphraser: Paraphraser | None = None
        self.translator: Translator | None = None
        if channels is not None:
            self._make(*channels)

    def fit(self, student: Tensor, teacher: Tensor) -> None:
        """Take the channels from one pair of maps."""
        for tensor in (student, teacher):
            if tensor.ndim != 4:
                raise ShapeError(f"expected a map (B, C, H, W), got shape {tuple(tensor.shape)}.")
        self._make(student.shape[1], teacher.shape[1])

    def _make(self, student: int, teacher: int) -> None:
        self.paraphraser = Paraphraser(teacher, self.rate, batch_norm=self.batch_norm)
        factors = self.paraphraser.factor_channels
        self.translator = Translator(student, factors, batch_norm=self.batch_norm)

    def forward(self, student: Tensor, teacher: Tensor, stage: str | None = None) -> Tensor:
        if self.paraphraser is None or self.translator is None:
            raise DistillError(
                "ParaphrasedFactorTransfer has no networks yet: give it the channels, or call fit "
                "on two maps."
            )
        paraphrases, apart = stage == self.paraphrase, stage is not None
        # Once it is frozen, so are its statistics.
        self.paraphraser.train(self.training and (paraphrases or not apart))
        loss = student.new_zeros((), dtype=torch.float32)
        if paraphrases or not apart:
            loss = loss + self.reconstruction * paraphraser_loss(
                self.paraphraser, teacher, form=self.reconstruction_form
            )
        if not paraphrases:
            with torch.no_grad():
                factor = self.paraphraser(teacher)
            translated = self.translator(student)
            loss = loss + factor_transfer(translated, factor, p=self.p, form=self.form)
        # What is not trained now has a zero gradient all the same: data-parallel training counts
        # on one.
        for parameter in self.still(stage):
            loss = loss + parameter.sum() * 0.0
        return loss

    def still(self, stage: str | None) -> list[nn.Parameter]:
        """What is not trained in a stage, which weight decay must not move either."""
        if stage is None:
            return []
        idle = self.translator if stage == self.paraphrase else self.paraphraser
        return [] if idle is None else list(idle.parameters())

    def extra_repr(self) -> str:
        return f"rate={self.rate}, p={self.p}, form={self.form!r}"
