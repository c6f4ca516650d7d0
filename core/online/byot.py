"""Be your own teacher: early exits that learn from the deepest one (Zhang et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..losses import feature_imitation, kl_div, soft_cross_entropy
from ..losses._reduction import check_choice, full_precision, matched_pair
from ..taps import Tap, Taps
from ._probe import Example, asking, check_logits, cross_entropy, example_batch

__all__ = [
    "BeYourOwnTeacher",
    "ByotOutputs",
    "EarlyExits",
    "ExitHead",
    "byot_losses",
    "check_byot",
]

Form = Literal["paper", "code"]

_HINT_WEIGHT = {"paper": 1.0, "code": 1e-6}


class ByotOutputs(NamedTuple):
    """What a network with exits answers.

    Args:
        logits: (B, K) of each exit, the network's own at the end.
        features: (B, C, H, W) of each exit's head, the network's deepest at the end.
    """

    logits: list[Tensor]
    features: list[Tensor]


class ExitHead(nn.Module):
    """A bottleneck that brings features to the form of the deepest, and a classifier.

    A 1x1 convolution to a quarter of the deepest width; 3x3 convolutions of stride 2, as many
    as keep the map at least as large as the deepest (each rounds up, as the stages of a ResNet
    do); a 1x1 convolution to the deepest width; batch norm and ReLU after each; then global average
    pooling and a linear layer. Code for the paper takes one convolution without padding in place of
    the strided ones, as wide as its stride (8, 4 and 2 in a ResNet), which has more weights from 8
    on and fits only multiples of the stride.

    Args:
        channels: Of the features at the exit.
        deepest: Channels of the deepest features.
        halvings: How often the map is halved.
        classes: K.

    Shapes:
        (B, channels, H, W) in; features (B, deepest, h, w) and logits (B, K) out.

    Example:
        >>> import torch
        >>> features, logits = ExitHead(8, 16, halvings=2, classes=10)(torch.zeros(2, 8, 12, 12))
        >>> features.shape, logits.shape
        (torch.Size([2, 16, 3, 3]), torch.Size([2, 10]))
    """

    def __init__(self, channels: int, deepest: int, halvings: int, classes: int) -> None:
        super().__init__()
        middle = max(deepest // 4, 1)
        layers = _layer(channels, middle, 1, 1)
        for _ in range(halvings):
            layers += _layer(middle, middle, 3, 2)
        layers += _layer(middle, deepest, 1, 1)
        self.bottleneck = nn.Sequential(*layers)
        self.linear = nn.Linear(deepest, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features in the deepest's form, and logits."""
        features = self.bottleneck(x)
        return features, self.linear(features.mean((2, 3)))


class EarlyExits(nn.Module):
    """What a network needs beside itself to be left early: a head at each exit.

    The network is not a part of it, so that its own state dict stays whole and is kept once; it is
    given to every call. Exits are read by forward hooks that live as long as the call.

    Args:
        network: Gives logits (B, K).
        exits: Names of the modules whose outputs (B, C, H, W) the heads read, shallowest first.
        features: Name of the module whose output is the deepest feature, such as ``"layer4"``.
        example: A batch, or the shape (C, H, W) of an image; shapes are looked up with it.

    Raises:
        ConfigError: If no exit is given, one is given twice, or they do not run in the given order,
            each once, before `features`.
        TapError: If a module is not there or not called.
        ShapeError: If the network does not run on the example, or a feature is no map.
    """

    def __init__(
        self, network: nn.Module, exits: Sequence[str], features: str, example: Example
    ) -> None:
        super().__init__()
        if isinstance(exits, str) or not exits:
            raise ConfigError(f"exits is {exits!r}; expected a list of module names.")
        names = [*exits, features]
        for name in names:
            if set(name) & set("*?@["):
                raise ConfigError(f"An exit is one module, by its name; got {name!r}.")
            Tap.parse(name).modules(network)
        if len(set(names)) < len(names):
            raise ConfigError(f"Exits and deepest features are modules of their own, got {names}.")
        self.exits = tuple(exits)
        self.deepest = features
        images = example_batch(network, example)
        _check_order(network, names, images)
        taps = Taps(network, names)
        with asking(network, images), taps.capture() as captured:
            logits = check_logits(network(images), "The network", len(images))
        # An in-place activation behind an exit would change what its head and the loss read.
        self.copied = tuple(sorted(name for name, _ in captured.mutated()))
        with asking(network, images):
            maps = self._read(network, images)[1]
        for name, found in zip(names, maps, strict=True):
            if found.ndim != 4:
                raise ShapeError(
                    f"{name!r} gives a tensor of shape {tuple(found.shape)}; an exit reads maps "
                    "(B, C, H, W). Name a module in front of the pooling."
                )
        last = maps[-1]
        self.heads = nn.ModuleList(
            ExitHead(m.shape[1], last.shape[1], _halvings(m, last), logits.shape[1])
            for m in maps[:-1]
        ).to(images.device)

    def forward(self, network: nn.Module, images: Tensor) -> ByotOutputs:
        """Ask all exits; the network runs once."""
        logits, maps = self._read(network, images)
        answers = [head(found) for head, found in zip(self.heads, maps, strict=False)]
        return ByotOutputs([*(a[1] for a in answers), logits], [*(a[0] for a in answers), maps[-1]])

    def exit_at(self, network: nn.Module, images: Tensor, index: int) -> Tensor:
        """Logits (B, K) of one exit; the network is left right after it.

        Args:
            network: The network.
            images: (B, C, H, W).
            index: Of the exit, 0 for the shallowest; ``len(exits)`` or -1 for the network's end.

        Raises:
            ConfigError: If there is no such exit.
        """
        count = len(self.heads) + 1
        if not -count <= index < count:
            raise ConfigError(
                f"There is no exit {index}; there are 0 to {count - 1}, of which {count - 1} is "
                "the network's own end."
            )
        index %= count
        if index == count - 1:
            return network(images)
        name = self.exits[index]
        taps = Taps(network, [name])
        with taps.capture({(name, "output"): 1}) as captured:
            network(images)
        return self.heads[index](captured.tensors(name)[0])[1]

    def early_exit(
        self, network: nn.Module, images: Tensor, threshold: float | Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Let every sample go at the first exit that is sure enough.

        At each exit the samples whose top probability reaches the threshold are taken out of the
        batch; the layers behind see the others alone, and are not run when nobody is left.

        Args:
            network: The network, in eval mode. The samples of a batch must not meet in it, and
                nothing but the exits' outputs may lead past them (no connection from in front of an
                exit to behind it).
            images: (B, C, H, W).
            threshold: Least top probability, from 0 (all leave at once) to 1 and above (nobody
                does); one number, or one an exit.

        Returns:
            Logits (B, K), and of each sample the index of the exit that gave them (B,), which is
            ``len(exits)`` for those that went to the network's end.

        Raises:
            ConfigError: If the network or a head is in training mode, whose batch norm lets samples
                meet; or the number of thresholds is another than that of the exits.
            ShapeError: If the network cannot go on with a part of the batch.

        Example:
            >>> import torch
            >>> net = nn.Sequential(
            ...     nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 5)
            ... ).eval()
            >>> exits = EarlyExits(net, ["0"], "1", example=(3, 6, 6)).eval()
            >>> images = torch.zeros(4, 3, 6, 6)
            >>> exits.early_exit(net, images, 0.0)[1], exits.early_exit(net, images, 1.1)[1]
            (tensor([0, 0, 0, 0]), tensor([1, 1, 1, 1]))
        """
        if any(module.training for module in (*network.modules(), *self.modules())):
            raise ConfigError(
                "early_exit needs the network and its heads in eval mode: in training mode batch "
                "norm lets the samples of a batch meet. Call .eval() on both."
            )
        limits = self._limits(threshold)
        left = torch.arange(len(images), device=images.device)
        taken: list[tuple[Tensor, Tensor]] = []
        leaving = left.new_full((len(images),), len(self.heads))

        def let_go(index: int, found: Any) -> Tensor:
            nonlocal left
            if not isinstance(found, Tensor) or len(found) != len(left):
                raise ShapeError(self._no_part(found, len(left)))
            logits = self.heads[index](found)[1]
            sure = logits.float().softmax(1).amax(1) >= limits[index]
            if bool(sure.any()):
                taken.append((left[sure], logits[sure]))
                leaving[left[sure]] = index
                left = left[~sure]
                if not len(left):
                    raise _Empty
                found = found[~sure]
            return found

        with self._standing_at_exits(network, let_go):
            try:
                rest = network(images)
            except _Empty:
                rest = None
            except (RuntimeError, ValueError) as error:
                if isinstance(error, ShapeError) or not taken:
                    raise
                raise ShapeError(f"{self._no_part(None, len(left))} ({error})") from error
        if rest is not None:
            if len(rest) != len(left):
                raise ShapeError(self._no_part(rest, len(left)))
            taken.append((left, rest))
        logits = torch.cat([each for _, each in taken])
        return logits[torch.argsort(torch.cat([index for index, _ in taken]))], leaving

    def _limits(self, threshold: float | Sequence[float]) -> list[float]:
        several = isinstance(threshold, Sequence)
        limits = [float(t) for t in threshold] if several else [float(threshold)] * len(self.exits)
        if len(limits) != len(self.exits) or not all(limit >= 0 for limit in limits):
            raise ConfigError(
                f"threshold is {threshold!r}; expected a number >= 0, or one for each of the "
                f"{len(self.exits)} exits."
            )
        return limits

    def _no_part(self, found: Any, expected: int) -> str:
        got = f"; {len(found)} came back" if isinstance(found, Tensor) else ""
        return (
            f"The network cannot go on with {expected} of the samples{got}: something leads past "
            "the exits, or joins the samples. Use exit_at, which keeps the batch whole."
        )

    def _read(self, network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        names = [*self.exits, self.deepest]
        taps = Taps(network, names)
        taps.copied.update((name, "output") for name in self.copied)
        with taps.capture() as captured:
            logits = network(images)
        found = [captured.tensors(name) for name in names]
        for name, tensors in zip(names, found, strict=True):
            if len(tensors) != 1:
                raise ConfigError(f"{name!r} gives {len(tensors)} tensors; an exit reads one map.")
        return logits, [tensors[0] for tensors in found]

    @contextmanager
    def _standing_at_exits(
        self, network: nn.Module, let_go: Callable[[int, Any], Tensor]
    ) -> Iterator[None]:
        handles = []
        try:
            for index, name in enumerate(self.exits):
                handles.append(
                    network.get_submodule(name).register_forward_hook(
                        lambda _module, _args, output, index=index: let_go(index, output)
                    )
                )
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Empty(BaseException):
    """Nobody is left; a ``BaseException``, so that no ``except Exception`` swallows it."""


class BeYourOwnTeacher(nn.Module):
    """A network and its exits as one module.

    Args:
        network: Gives logits (B, K); deployed whole by itself, or with the exits.
        exits: Names of the modules whose outputs the heads read, shallowest first. In the paper the
            stages of a ResNet but the last, ``["layer1", "layer2", "layer3"]``.
        features: Name of the module whose output is the deepest feature.
        example: A batch, or the shape (C, H, W) of an image; shapes are looked up with it. Other
            sizes will do as well, as far as the network takes them.

    Raises:
        ConfigError, TapError, ShapeError: See :class:`EarlyExits`.

    Reference:
        Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of
        Convolutional Neural Networks via Self Distillation, ICCV 2019 (arXiv 1905.08094).

    Example:
        >>> import torch
        >>> net = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, 2), nn.Flatten(), nn.Linear(32, 5)
        ... )
        >>> model = BeYourOwnTeacher(net, ["0"], "1", example=(3, 7, 7))
        >>> answer = model(torch.zeros(2, 3, 7, 7))
        >>> [tuple(each.shape) for each in answer.logits]
        [(2, 5), (2, 5)]
    """

    def __init__(
        self,
        network: nn.Module,
        exits: Sequence[str] = ("layer1", "layer2", "layer3"),
        features: str = "layer4",
        *,
        example: Example = (3, 32, 32),
    ) -> None:
        super().__init__()
        self.network = network
        self.exits = EarlyExits(network, exits, features, example)

    def forward(self, images: Tensor) -> ByotOutputs:
        """Logits and features of all exits, the network's own at the end."""
        return self.exits(self.network, images)

    def exit_at(self, images: Tensor, index: int) -> Tensor:
        """Logits of one exit, computing no more than they need; see :meth:`EarlyExits.exit_at`."""
        return self.exits.exit_at(self.network, images, index)

    def early_exit(
        self, images: Tensor, threshold: float | Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Let every sample go where it is sure enough; see :meth:`EarlyExits.early_exit`."""
        return self.exits.early_exit(self.network, images, threshold)


def byot_losses(
    outputs: ByotOutputs,
    target: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 3.0,
    hint_weight: float | None = None,
    form: Form = "paper",
    classification: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> dict[str, Tensor]:
    r"""What exits learn from labels and from the deepest classifier.

    .. math:: L = CE(q_C, y) + \sum_{i<C} \Big[ (1 - \alpha) CE(q_i, y)
                  + \alpha T^2 KL(q_C^T \| q_i^T)
                  + \lambda \, \mathrm{mean} (F_i - F_C)^2 \Big]

    The deepest classifier and the deepest features are targets, without gradient: otherwise they
    would be drawn towards the shallow ones.

    The paper writes the sum of squares :math:`\|F_i - F_C\|_2^2`; the mean keeps a weight valid at
    other widths, batches and image sizes. With ``form="code"`` three things are as in code for the
    paper: the soft term is the cross-entropy with the deepest probabilities, times :math:`T^2` (the
    same gradient; :func:`~taskdistill.core.losses.soft_cross_entropy`); the factor
    :math:`1 - \alpha` is on the deepest cross-entropy too; and the features' term is a sum over the
    whole batch, of the elements where either side is above 0 (after a ReLU, all that differ). So
    its weight of 1e-6 stands for 1e-6 * B * C * H * W of ours: 1.05 at 128 images and features of
    512 x 4 x 4, ResNet-18 on CIFAR, hence the default of 1.

    Where the maps differ in size the larger is average-pooled to the smaller.

    Args:
        outputs: Logits and features of each exit, the deepest at the end.
        target: Labels (B,), or one probability a class (B, K).
        alpha: Share of the deepest classifier against the labels, from 0 to 1; 0.1 in code.
        temperature: T; 3 in code.
        hint_weight: lambda; 1 by default, with ``form="code"`` 1e-6.
        form: ``"paper"`` or ``"code"``.
        classification: Gives CE of logits and target.

    Returns:
        Four scalars whose sum is L, weights included: ``cls`` (of the deepest), ``exits`` (CE of
        the exits), ``distill`` and ``hint``; and for the log ``distill_raw`` and ``hint_raw``, the
        last two without their weights. Averaged over the batch, but for the code's hint.

    Raises:
        ConfigError: If an option is out of range, or there is no exit.
        ShapeError: If logits or features differ in shape (other than the features' height and
            width).

    Reference:
        Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of
        Convolutional Neural Networks via Self Distillation, ICCV 2019, section 3
        (arXiv 1905.08094).

    Example:
        >>> import torch
        >>> logits = [torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])]
        >>> features = [torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)]
        >>> terms = byot_losses(ByotOutputs(logits, features), torch.tensor([0]), alpha=0.5)
        >>> [(name, round(terms[name].item(), 4)) for name in ("cls", "exits", "distill", "hint")]
        [('cls', 0.1269), ('exits', 0.3466), ('distill', 0.2368), ('hint', 1.0)]
    """
    check_byot(alpha, temperature, hint_weight, form)
    *exits, deepest = outputs.logits
    *features, last = outputs.features
    if not exits or len(features) != len(exits):
        raise ConfigError(
            f"Expected logits and features of at least one exit and of the deepest, got "
            f"{len(outputs.logits)} and {len(outputs.features)}."
        )
    code = form == "code"
    weight = _HINT_WEIGHT[form] if hint_weight is None else hint_weight
    soft = soft_cross_entropy if code else kl_div
    distance = _masked_sum if code else feature_imitation
    main = classification(deepest, target)
    hints = []
    for own in features:
        if own.ndim != last.ndim or own.shape[:2] != last.shape[:2]:
            raise ShapeError(
                f"Exits' features have the deepest's channels: expected {tuple(last.shape)} but "
                f"for the size, got {tuple(own.shape)}."
            )
        hints.append(distance(*_one_size(own, last.detach())))
    divergence = torch.stack([soft(q, deepest, temperature=temperature) for q in exits]).sum()
    gap = torch.stack(hints).sum()
    return {
        "cls": (1 - alpha) * main if code else main,
        "exits": (1 - alpha) * torch.stack([classification(q, target) for q in exits]).sum(),
        "distill": alpha * divergence,
        "hint": weight * gap,
        "distill_raw": divergence,
        "hint_raw": gap,
    }


def check_byot(alpha: float, temperature: float, hint_weight: float | None, form: str) -> None:
    """Check the options of :func:`byot_losses` before training.

    Raises:
        ConfigError: If one is out of range.
    """
    check_choice("form", form, get_args(Form))
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be a number from 0 to 1, got {alpha}.")
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be a finite number > 0, got {temperature}.")
    if hint_weight is not None and not 0 <= hint_weight < float("inf"):
        raise ConfigError(f"hint_weight must be a finite number >= 0, got {hint_weight}.")


def _masked_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences where either side is active, summed over all."""
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        active = (student > 0) | (teacher > 0)
        return ((student - teacher) * active).square().sum()


def _one_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the smaller, each axis by itself."""
    if one.shape[2:] == other.shape[2:]:
        return one, other
    height, width = (min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(one, (height, width)), F.adaptive_avg_pool2d(
        other, (height, width)
    )


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    # Not in place: what the ReLU reads is kept by the batch norm anyway.
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _halvings(found: Tensor, deepest: Tensor) -> int:
    """How often a map can be halved, rounding up, and stay at least as large as another."""
    sides, count = [*found.shape[2:]], 0
    while max(sides) > 1:
        sides = [-(-side // 2) for side in sides]
        if any(side < least for side, least in zip(sides, deepest.shape[2:], strict=True)):
            break
        count += 1
    return count


def _check_order(network: nn.Module, names: Sequence[str], images: Tensor) -> None:
    order: list[str] = []
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _args, _output, name=name: order.append(name)
        )
        for name in names
    ]
    try:
        with asking(network, images):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    if order != [*names]:
        raise ConfigError(
            f"Exits and the deepest features must run in the given order, each once: expected "
            f"{', '.join(names)}; the network runs {', '.join(order) or 'none of them'}."
        )
