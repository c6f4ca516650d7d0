"""Network augmentation: a tiny network trained as the shared slice of wider ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .channel_groups import ChannelGraph, ChannelGroup, channel_groups
from .errors import CheckpointError, ConfigError, did_you_mean

__all__ = ["NetAug", "SlicedBatchNorm1d", "SlicedBatchNorm2d", "SlicedConv2d", "SlicedLinear"]


class SlicedConv2d(nn.Conv2d):
    """A convolution that holds the widest weights and uses the first channels of them.

    How many inputs it reads is told by what comes in; how many it gives is :attr:`active`.

    Args:
        plain: The convolution to widen: plain, or depthwise with as many channels out as in.
        in_channels: Inputs of the widest.
        out_channels: Outputs of the widest.

    Example:
        >>> layer = SlicedConv2d(nn.Conv2d(4, 8, 3), 8, 16)
        >>> layer.active = 12
        >>> layer(torch.zeros(1, 4, 5, 5)).shape[1]
        12
    """

    def __init__(self, plain: nn.Conv2d, in_channels: int, out_channels: int) -> None:
        self.depthwise = plain.groups > 1
        super().__init__(
            in_channels,
            out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            out_channels if self.depthwise else 1,
            plain.bias is not None,
            plain.padding_mode,
            device=plain.weight.device,
            dtype=plain.weight.dtype,
        )
        self.active = out_channels

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the weights of as many channels as came in and shall go out."""
        count = input.shape[1]
        active = count if self.depthwise else self.active
        weight = self.weight[:active] if self.depthwise else self.weight[:active, :count]
        bias = None if self.bias is None else self.bias[:active]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        groups = count if self.depthwise else 1
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, groups)


class SlicedLinear(nn.Linear):
    """A linear layer that holds the widest weights; see :class:`SlicedConv2d`.

    Args:
        plain: The layer to widen.
        in_features: Inputs of the widest.
        out_features: Outputs of the widest.

    Example:
        >>> SlicedLinear(nn.Linear(4, 10), 8, 10)(torch.zeros(2, 6)).shape
        torch.Size([2, 10])
    """

    def __init__(self, plain: nn.Linear, in_features: int, out_features: int) -> None:
        like = plain.weight
        bias = plain.bias is not None
        super().__init__(in_features, out_features, bias, device=like.device, dtype=like.dtype)
        self.active = out_features

    def forward(self, input: Tensor) -> Tensor:
        """Multiply with the weights of as many features as came in and shall go out."""
        bias = None if self.bias is None else self.bias[: self.active]
        return F.linear(input, self.weight[: self.active, : input.shape[-1]], bias)


class _SlicedNorm(_BatchNorm):
    """What the batch norms share.

    In training, :attr:`tracking` says whether running statistics are updated: those of a channel
    belong to the base network, and another width would mix its own into them.
    """

    tracking: bool

    def __init__(self, plain: _BatchNorm, num_features: int) -> None:
        like = next((t for t in (plain.weight, plain.running_mean) if t is not None), None)
        super().__init__(
            num_features,
            plain.eps,
            plain.momentum,
            plain.affine,
            plain.track_running_stats,
            device=None if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        self.tracking = True
        # A norm of timm's carries what comes after it.
        self._after = [
            name for name in ("drop", "act") if isinstance(_child(plain, name), nn.Module)
        ]
        for name in self._after:
            self.add_module(name, plain.get_submodule(name))

    def forward(self, input: Tensor) -> Tensor:
        """Normalise as many channels as came in."""
        self._check_input_dim(input)
        count = input.shape[1]

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:count]

        batch = self.training or self.running_mean is None
        tracks = self.training and self.track_running_stats and self.tracking
        factor = 0.0 if self.momentum is None else self.momentum
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        kept = tracks or not self.training
        output = F.batch_norm(
            input,
            part(self.running_mean) if kept else None,
            part(self.running_var) if kept else None,
            part(self.weight),
            part(self.bias),
            batch,
            factor,
            self.eps,
        )
        for name in self._after:
            output = self.get_submodule(name)(output)
        return output


class SlicedBatchNorm2d(_SlicedNorm, nn.BatchNorm2d):
    """A batch norm that holds the widest weights and statistics.

    Args:
        plain: The norm to widen.
        num_features: Channels of the widest.

    Example:
        >>> SlicedBatchNorm2d(nn.BatchNorm2d(4), 8)(torch.zeros(2, 6, 3, 3)).shape[1]
        6
    """


class SlicedBatchNorm1d(_SlicedNorm, nn.BatchNorm1d):
    """A batch norm of vectors that holds the widest weights and statistics.

    Args:
        plain: The norm to widen.
        num_features: Channels of the widest.

    Example:
        >>> SlicedBatchNorm1d(nn.BatchNorm1d(4), 8)(torch.rand(2, 6)).shape[1]
        6
    """


class NetAug:
    r"""A network, and wider ones of which it is the first channels.

    .. math:: L = L(W_{base}) + \alpha\, L([W_{base}, W_i])

    A tiny network has too little capacity to fit its data; what regularises a large one makes it
    worse. Here it gets more supervision instead: in every step one wider network :math:`[W_{base},
    W_i]` is drawn, which contains it, and learns the same task. Afterwards the base is cut out; it
    costs what it always did.

    Any convolutional classifier can be the base: :func:`.channel_groups` tells which layers have to
    stay as wide as each other. :attr:`network` is a wide copy under the same module names whose
    convolutions, linear layers and batch norms hold the widest weights and use the first channels.

    Each group of channels has a multiplier of its own:

    - a *width* group (stages, stem) has its base channels times a multiplier of ``width``;
    - an *expansion* group (inside a block) multiplies the block's expansion ratio, as in the
      authors' code: base channels times a multiplier of ``expansion`` times the share by which what
      the block reads is wider;
    - a *gate* (inside squeeze-and-excitation) grows with the channels that it scales;
    - the image and the classes stay.

    Batch norms update their running statistics at the base setting alone, so that these are the
    base's own. In the authors' code all widths share them and they are computed anew before every
    evaluation, which :func:`.recalibrate` does.

    The authors' code also sorts the channels by importance once an epoch, so that the base is the
    best slice. That is left out: it permutes weights under the optimizer's feet, whose momentum
    stays in the old order.

    Args:
        network: The base network, which is copied. Its weights become the base's; those around them
            are drawn as the layers of torch draw their own.
        width: Multipliers of the widths, 1 or more; by default those of MobileNetV2-Tiny in the
                authors' scripts.
        expansion: Multipliers of the expansion ratios.
        expansion_layers: Globs over layer names that say which layers make expansions, in place of
            the rule in :func:`.channel_groups`.
        divisor: Channels are rounded to a multiple of it, where the base's are one; 1 in the
            authors' code. 8 suits tensor cores.

    Raises:
        ConfigError: If the multipliers widen nothing, or the network cannot be widened; names the
            layer.

    Reference:
        Cai, Gan, Lin, Han: Network Augmentation for Tiny Deep Learning, ICLR 2022
        (arXiv 2110.08890).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...                     nn.Flatten(), nn.Linear(4, 10))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> netaug = NetAug(net, width=(1, 2), expansion=(1,))
        >>> torch.equal(netaug(images), net(images))
        True
        >>> netaug.use_widest()
        >>> netaug.active
        {'input': 3, '0': 8, '4': 10}
        >>> netaug.export()
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          ...
    """

    def __init__(
        self,
        network: nn.Module,
        width: Sequence[float] = (1.0, 1.8, 2.6),
        expansion: Sequence[float] = (1.0, 1.6, 2.2, 2.8),
        expansion_layers: Sequence[str] | None = None,
        divisor: int = 1,
    ) -> None:
        self.width = _multipliers("width", width)
        self.expansion = _multipliers("expansion", expansion)
        if not isinstance(divisor, int) or isinstance(divisor, bool) or divisor < 1:
            raise ConfigError(f"divisor is {divisor!r}; expected a whole number from 1 on.")
        self.divisor = divisor
        _check_untied(network)
        self.graph: ChannelGraph = channel_groups(network, expansion_layers)
        self._base = {name: 1.0 for name in self._sampled()}
        self._base_channels = self._channels(self._base)
        self._widest = {name: max(self._choices(name)) for name in self._base}
        widest = self._channels(self._widest)
        if widest == self._base_channels:
            raise ConfigError(
                f"width={list(self.width)} and expansion={list(self.expansion)} widen nothing of "
                f"{type(network).__name__}: give multipliers above 1 of what it has "
                f"({self.count('width')} widths and {self.count('expansion')} expansions)."
            )
        self._shapes = {k: _shape(v) for k, v in network.state_dict().items()}
        self._factors: dict[str, int] = {}
        self._layers: dict[str, SlicedConv2d | SlicedLinear | _SlicedNorm] = {}
        self._plain: dict[str, nn.Module] = {}
        self.network = self._widened(network, widest)
        self._setting: dict[str, float] = {}
        self.active: dict[str, int] = {}
        self.use_base()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network at the present setting."""
        return self.network(*args, **kwargs)

    # -- settings ------------------------------------------------------------------------------

    @property
    def groups(self) -> dict[str, ChannelGroup]:
        """The groups of channels, by the first layer that makes them."""
        return self.graph.groups

    @property
    def setting(self) -> dict[str, float]:
        """The present multiplier of each group that has one."""
        return dict(self._setting)

    def count(self, kind: str) -> int:
        """How many groups there are of a kind, ``"width"`` or ``"expansion"``."""
        return sum(group.kind == kind for group in self.groups.values())

    def apply(self, setting: Mapping[str, float]) -> None:
        """Use a multiplier for each group; groups not named have 1.

        Raises:
            ConfigError: If there is no such group, or it has no such multiplier.
        """
        for name, value in setting.items():
            if name not in self._base:
                raise ConfigError(
                    f"There is no group {name!r} that can be widened."
                    f"{did_you_mean(name, self._base)}"
                )
            if value != 1 and value not in self._choices(name):
                raise ConfigError(
                    f"Group {name!r} has the multipliers {list(self._choices(name))}, not "
                    f"{value!r}."
                )
        self._setting = {**self._base, **setting}
        self.active = self._channels(self._setting)
        base = self.active == self._base_channels
        for name, layer in self._layers.items():
            if isinstance(layer, _SlicedNorm):
                layer.tracking = base
            else:
                layer.active = self.active[self.graph.outputs[name]]

    def use_base(self) -> None:
        """Use the base network."""
        self.apply({})

    def use_widest(self) -> None:
        """Use every multiplier at its largest."""
        self.apply(self._widest)

    def sample(
        self,
        generator: torch.Generator | None = None,
        width: bool = True,
        expansion: bool = True,
    ) -> dict[str, float]:
        """Draw a multiplier for each group, all equally likely, and use them.

        Args:
            generator: What to draw from, on the CPU; torch's global one by default. Processes that
                share gradients have to draw the same.
            width: Whether widths are drawn; those not drawn are the base's. The authors leave them
                out in the last 75 epochs.
            expansion: Whether expansions are.

        Returns:
            The setting.
        """
        drawn = {"width": width, "expansion": expansion}
        setting = {}
        for name in self._base:
            choices = self._choices(name)
            if drawn[self.groups[name].kind]:
                index = torch.randint(len(choices), (), generator=generator).item()
                setting[name] = choices[int(index)]
        self.apply(setting)
        return self.setting

    @contextmanager
    def restored(self) -> Iterator[NetAug]:
        """Do something at another setting, and come back to the present one.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
            >>> netaug = NetAug(net, width=(1, 2))
            >>> with netaug.restored():
            ...     netaug.use_widest()
            >>> netaug.setting
            {'0': 1.0}
        """
        before = self.setting
        try:
            yield self
        finally:
            self.apply(before)

    # -- weights -------------------------------------------------------------------------------

    def base_state(self) -> dict[str, Any]:
        """The state dict of the plain base network: its names and shapes, as copies."""
        return self.slice_state(self.network.state_dict())

    def slice_state(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Cut the base out of a state dict of :attr:`network`.

        Args:
            state: The wide entries; those that are not the network's are left out.
            prefix: What stands before the network's names, there and in what is returned.
        """
        return {
            prefix + name: _cut(state[prefix + name], shape).clone() if shape is not None else value
            for name, shape in self._shapes.items()
            if (value := state.get(prefix + name)) is not None
        }

    def embedded(self, name: str, wide: Tensor, base: Tensor) -> Tensor:
        """A copy of a wide tensor in which the base's part is replaced.

        Args:
            name: Its name in the state dict.
            wide: The tensor of :attr:`network`.
            base: The plain network's.

        Raises:
            CheckpointError: If it has another shape.
        """
        if _shape(base) != self._shapes[name]:
            raise CheckpointError(
                f"{name} has shape {_shape(base)}; that of the base network has "
                f"{self._shapes[name]}."
            )
        wide = wide.clone()
        _cut(wide, tuple(base.shape)).copy_(base)
        return wide

    def load_base_state(self, state: Mapping[str, Any]) -> None:
        """Give the base the weights of a plain network; those around it stay.

        Raises:
            CheckpointError: If an entry is missing, unexpected or of another shape; nothing is
                changed then.
        """
        _compare(self._shapes, state)
        wide = self.network.state_dict()
        with torch.no_grad():
            for name, shape in self._shapes.items():
                if shape is not None:
                    _cut(wide[name], shape).copy_(state[name])

    def wide_state(self) -> dict[str, Tensor]:
        """All weights and statistics; the living tensors, not copies."""
        return {k: v for k, v in self.network.state_dict().items() if isinstance(v, Tensor)}

    def export(self, setting: Mapping[str, float] | None = None) -> nn.Module:
        """Return a plain network with plain layers and weights of its own.

        Args:
            setting: Which network to cut out; the base by default.
        """
        channels = self._channels({**self._base, **(setting or {})})
        # The copy must not drag the wide weights along.
        memo: dict[int, Any] = {}
        for name, layer in self._layers.items():
            memo[id(layer)] = self._narrowed(name, channels)
        return copy.deepcopy(self.network, memo)

    # -- construction --------------------------------------------------------------------------

    def _sampled(self) -> list[str]:
        return [n for n, g in self.groups.items() if g.kind in ("width", "expansion")]

    def _choices(self, name: str) -> tuple[float, ...]:
        return self.expansion if self.groups[name].kind == "expansion" else self.width

    def _channels(self, setting: Mapping[str, float]) -> dict[str, int]:
        """The number of channels of every group."""
        found: dict[str, int] = {}
        # Each kind may follow those before it.
        for kind in ("fixed", "width", "expansion", "gate"):
            for name, group in self.groups.items():
                if group.kind == kind:
                    found[name] = self._rounded(group, setting.get(name, 1.0), found)
        return {name: found[name] for name in self.groups}

    def _rounded(self, group: ChannelGroup, multiplier: float, found: Mapping[str, int]) -> int:
        if group.kind == "fixed":
            return group.channels
        wider = multiplier
        if group.follows is not None and self.groups[group.follows].channels:
            wider *= found[group.follows] / self.groups[group.follows].channels
        divisor = 1 if group.channels % self.divisor else self.divisor
        # Half rounds up; what floats lose in 16 * 1.6 / 16 must not decide.
        rounded = int(group.channels * wider / divisor + 0.5 + 1e-9) * divisor
        return max(group.channels, rounded)

    def _widened(self, network: nn.Module, channels: Mapping[str, int]) -> nn.Module:
        plain = dict(network.named_modules())
        memo: dict[int, Any] = {}
        for name in self.graph.outputs:
            layer = plain[name]
            memo[id(layer)] = self._layers[name] = self._wide(name, layer, channels)
            self._plain[name] = copy.deepcopy(layer).to("meta")
        return copy.deepcopy(network, memo)

    def _wide(
        self, name: str, layer: nn.Module, channels: Mapping[str, int]
    ) -> SlicedConv2d | SlicedLinear | _SlicedNorm:
        reads = channels[self.graph.inputs[name]]
        gives = channels[self.graph.outputs[name]]
        wide: SlicedConv2d | SlicedLinear | _SlicedNorm
        if isinstance(layer, nn.Conv2d):
            wide = SlicedConv2d(layer, reads, gives)
        elif isinstance(layer, nn.Linear):
            base = self.groups[self.graph.inputs[name]].channels
            self._factors[name] = layer.in_features // base
            wide = SlicedLinear(layer, reads * self._factors[name], gives)
        elif isinstance(layer, nn.BatchNorm1d):
            wide = SlicedBatchNorm1d(layer, gives)
        else:
            assert isinstance(layer, _BatchNorm)
            wide = SlicedBatchNorm2d(layer, gives)
        wide.train(layer.training)
        ours = dict([*wide.named_parameters(), *wide.named_buffers()])
        with torch.no_grad():
            for key, value in [*layer.named_parameters(), *layer.named_buffers()]:
                _cut(ours[key], tuple(value.shape)).copy_(value)
                ours[key].requires_grad_(value.requires_grad)
        return wide

    def _narrowed(self, name: str, channels: Mapping[str, int]) -> nn.Module:
        wide = self._layers[name]
        layer: Any = copy.deepcopy(self._plain[name])
        reads = channels[self.graph.inputs[name]] * self._factors.get(name, 1)
        gives = channels[self.graph.outputs[name]]
        if isinstance(layer, nn.Conv2d):
            layer.in_channels, layer.out_channels = reads, gives
            layer.groups = gives if wide.depthwise else 1  # type: ignore[union-attr]
        elif isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = reads, gives
        else:
            layer.num_features = gives
        layer.train(wide.training)
        ours = dict([*wide.named_parameters(), *wide.named_buffers()])
        for key, value in [*layer.named_parameters(), *layer.named_buffers()]:
            shape = list(value.shape)
            if shape:
                shape[0] = gives
            if len(shape) > 1 and not getattr(wide, "depthwise", False):
                shape[1] = reads
            owner = layer.get_submodule(key.rpartition(".")[0])
            own = _cut(ours[key].detach(), tuple(shape)).clone()
            if isinstance(value, nn.Parameter):
                own = nn.Parameter(own, requires_grad=ours[key].requires_grad)
            setattr(owner, key.rpartition(".")[2], own)
        return layer


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_children()).get(name)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _cut(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first entries along every dimension."""
    return tensor[tuple(slice(size) for size in shape)]


def _multipliers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = isinstance(values, Sequence) and not isinstance(values, str) and bool(values)
    if not numbers or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 1 <= v < math.inf
        for v in values
    ):
        raise ConfigError(
            f"{name} is {values!r}; expected multipliers of 1 or more, such as [1.0, 1.8, 2.6]: "
            "the base network is the narrowest."
        )
    return tuple(float(v) for v in values)


def _check_untied(network: nn.Module) -> None:
    """Refuse parameters of two layers: the wide ones would go apart."""
    owners: dict[int, str] = {}
    for prefix, module in network.named_modules():
        for key, parameter in module.named_parameters(prefix, recurse=False):
            if id(parameter) in owners:
                raise ConfigError(
                    f"{key!r} and {owners[id(parameter)]!r} are one parameter; a network whose "
                    "layers share weights cannot be widened."
                )
            owners[id(parameter)] = key


def _compare(shapes: Mapping[str, tuple[int, ...] | None], state: Mapping[str, Any]) -> None:
    wrong = [f"{name} is missing" for name in shapes if name not in state]
    wrong += [f"{name} is unexpected" for name in state if name not in shapes]
    wrong += [
        f"{name} has shape {_shape(state[name])} in place of {shape}"
        for name, shape in shapes.items()
        if shape is not None and name in state and _shape(state[name]) != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"This is no state dict of the base network: {'; '.join(wrong[:5])}{more}."
        )
