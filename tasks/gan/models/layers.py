"""What the networks have in common: normalisation by name, initialisation, checks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ....core.errors import ConfigError, ShapeError, did_you_mean

__all__ = [
    "INITIALISATIONS",
    "NORMS",
    "PADDINGS",
    "ImageNetwork",
    "check_choice",
    "check_counts",
    "check_dropout",
    "conv_bias",
    "init_weights",
    "norm_layer",
    "padding_layer",
]

NORMS = ("instance", "batch", "none")
PADDINGS = ("reflect", "replicate", "zero")
INITIALISATIONS = ("normal", "xavier", "kaiming", "orthogonal")


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Return the normalisation of that name.

    Args:
        norm: ``"instance"`` (no parameters, no running statistics: each image by itself, in
            training and after), ``"batch"`` (affine, with running statistics) or ``"none"`` (hands
            its input on, and keeps the place in the list of layers).
        channels: C of the map.

    Raises:
        ConfigError: If ``norm`` is another name.

    Example:
        >>> norm_layer("instance", 8).state_dict()
        OrderedDict()
    """
    check_choice("norm", norm, NORMS)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def conv_bias(norm: str) -> bool:
    """Return whether a convolution in front of that normalisation has a bias.

    Not before a batch norm, which has one of its own. Before an instance norm, which would take it
    away again, it is there because the released files hold it. The release has none under
    ``"none"`` either; here it has one there, or nothing would shift the map.

    Raises:
        ConfigError: If ``norm`` is not a known name.

    Example:
        >>> conv_bias("instance"), conv_bias("batch"), conv_bias("none")
        (True, False, True)
    """
    check_choice("norm", norm, NORMS)
    return norm != "batch"


def padding_layer(padding: str) -> tuple[list[nn.Module], int]:
    """Return how a 3x3 convolution is padded by one: the layer before it, and its own padding.

    Zeros are the convolution's own affair: there is no layer then, and the indices behind it shift,
    as in the release.

    Raises:
        ConfigError: If ``padding`` is not a known name.

    Example:
        >>> padding_layer("reflect"), padding_layer("zero")
        (([ReflectionPad2d((1, 1, 1, 1))], 0), ([], 1))
    """
    check_choice("padding", padding, PADDINGS)
    if padding == "zero":
        return [], 1
    return [nn.ReflectionPad2d(1) if padding == "reflect" else nn.ReplicationPad2d(1)], 0


def init_weights(module: nn.Module, kind: str = "normal", gain: float = 0.02) -> None:
    """Initialise every layer of a network in place, as the pix2pix and CycleGAN release does.

    Weights of convolutions and linear layers by ``kind``, weights of batch norms from
    N(1, ``gain``), all biases 0.

    Args:
        module: The network.
        kind: ``"normal"`` draws from N(0, ``gain``), the standard deviation of both papers;
            ``"xavier"`` and ``"orthogonal"`` are scaled by ``gain``; ``"kaiming"`` (fan-in, for
            ReLU) knows no gain.
        gain: Standard deviation or scale; 0.02 in the release.

    Raises:
        ConfigError: If ``kind`` is unknown or ``gain`` negative.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Conv2d(64, 64, 3)
        >>> init_weights(layer)
        >>> round(layer.weight.std().item(), 3), layer.bias.abs().max().item()
        (0.02, 0.0)
    """
    check_choice("kind", kind, INITIALISATIONS)
    if not gain >= 0:
        raise ConfigError(f"gain must be a number >= 0, got {gain}.")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "normal":
                nn.init.normal_(layer.weight, 0.0, gain)
            elif kind == "xavier":
                nn.init.xavier_normal_(layer.weight, gain)
            elif kind == "kaiming":
                nn.init.kaiming_normal_(layer.weight)
            else:
                nn.init.orthogonal_(layer.weight, gain)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, gain)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class ImageNetwork(nn.Module):
    """Base of the networks: initialisation on demand, and one message for images that do not fit.

    Args:
        in_channels: C of the images.
        side_multiple: Both sides must be divisible by it.
        smallest_side: Both sides must have it at least.
    """

    def __init__(self, in_channels: int, *, side_multiple: int = 1, smallest_side: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.side_multiple = side_multiple
        self.smallest_side = smallest_side

    def init_weights(self, kind: str = "normal", gain: float = 0.02) -> None:
        """Initialise in place; see :func:`init_weights`. mmengine calls it before training."""
        init_weights(self, kind, gain)

    def check_images(self, images: Tensor) -> None:
        """Raise ShapeError if the network cannot take these images."""
        name = type(self).__name__
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ShapeError(
                f"this {name} takes images (B, {self.in_channels}, H, W), got "
                f"{tuple(images.shape)}. Give it such images, or build it with other in_channels."
            )
        height, width = images.shape[2:]
        if height % self.side_multiple or width % self.side_multiple:
            raise ShapeError(
                f"this {name} takes images whose sides are divisible by {self.side_multiple}, got "
                f"{height}x{width}. Crop, resize or pad them."
            )
        if height < self.smallest_side or width < self.smallest_side:
            raise ShapeError(
                f"this {name} takes images with sides of {self.smallest_side} at least, got "
                f"{height}x{width}. Enlarge them, or take a network with fewer downsamplings."
            )


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError if an option has none of the values there are."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(
            f"{name} must be one of {choices}, got {value!r}.{did_you_mean(str(value), choices)}"
        )


def check_counts(**counts: object) -> None:
    """Raise ConfigError for an option that is not a whole number from 1 on."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} must be a whole number >= 1, got {count!r}.")


def check_dropout(dropout: float) -> None:
    """Raise ConfigError for a probability that leaves nothing or is none."""
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be a probability in [0, 1), got {dropout!r}.")
