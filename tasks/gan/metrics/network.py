"""What a feature network is, and how images of any sizes go through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....core.errors import ConfigError, ShapeError, did_you_mean

__all__ = ["NETWORKS", "FeatureNetwork", "build_network", "features_of", "pick_device"]

NETWORKS = ("inception", "small")


class FeatureNetwork(nn.Module, ABC):
    """A fixed network that turns images into vectors whose distribution is compared.

    Attributes:
        figure: Name of the Frechet distance between its features, as it is printed and logged.
        kernel_figure: Name of the kernel distance.
        dims: D, length of a vector.
        identity: Says everything that decides about the features; two networks of one identity
            give the same. Part of the name of cached statistics.
        kernel_gamma: Scale of the kernel distance; ``None`` is 1 / D.
    """

    figure: str
    kernel_figure: str
    dims: int
    identity: str
    kernel_gamma: float | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images of one size.

        Args:
            images: uint8, (B, C, H, W), C of 1 (grey) or 3 (RGB).

        Returns:
            float32, (B, P, D): P vectors an image.
        """


def features_of(network: FeatureNetwork, images: Sequence[Tensor]) -> list[Tensor]:
    """Return the features of images that may differ in size.

    Images of one shape go through the network together, in their order, without gradient and
    without autocast; so a batch of equal sizes is one call, as in other tools.

    Args:
        network: On the device where it is to run.
        images: uint8, (C, H, W) each, C of 1 or 3.

    Returns:
        For each image its features, float32, (P, D), on the CPU, in the order of the images.

    Raises:
        ShapeError: If something is no uint8 image of one or three channels.

    Example:
        >>> from taskdistill.tasks.gan.metrics.small import SmallNetwork
        >>> images = [torch.zeros(3, 16, 16, dtype=torch.uint8), torch.ones(1, 9, 8).byte()]
        >>> [tuple(features.shape) for features in features_of(SmallNetwork(), images)]
        [(16, 72), (16, 72)]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
            raise ShapeError(
                f"image features need uint8 images (C, H, W) with 1 or 3 channels, got "
                f"{image.dtype} {tuple(image.shape)}."
            )
        groups.setdefault(tuple(image.shape), []).append(index)
    device = next((t.device for t in [*network.parameters(), *network.buffers()]), None)
    found: dict[int, Tensor] = {}
    network.eval()
    for indices in groups.values():
        batch = torch.stack([images[index] for index in indices]).to(device)
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            features = network(batch).float().cpu()
        found.update(zip(indices, features, strict=True))
    return [found[index] for index in range(len(images))]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name; ``"auto"`` is the GPU where there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device here.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" is a name, but holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"Device {name!r} cannot be used here ({reason}). Take auto, cpu, cuda or cuda:N."
        ) from error
    return device


def build_network(name: str, weights: str | None = None, dims: int = 2048) -> FeatureNetwork:
    """Build a feature network by name.

    Args:
        name: ``"inception"`` (FID) or ``"small"`` (:class:`SmallNetwork`, no weights needed).
        weights: Weights file of ``"inception"``; see :func:`load_inception`.
        dims: D of ``"inception"``: 64, 192, 768 or 2048.

    Raises:
        ConfigError: If there is no such network, or it takes no weights.
        CheckpointError: As :func:`load_inception` does.

    Example:
        >>> build_network("small").figure
        'SmallFD'
    """
    # Imported here, since both are made of what this file defines.
    from .inception import load_inception
    from .small import SmallNetwork

    if name not in NETWORKS:
        raise ConfigError(
            f"There is no feature network {name!r}; there are {', '.join(NETWORKS)}."
            f"{did_you_mean(str(name), NETWORKS)}"
        )
    if name == "inception":
        return load_inception(weights, dims)
    if weights is not None:
        raise ConfigError(
            f"The small network is fixed and takes no weights, got {str(weights)!r}. "
            "Leave them out, or take the network 'inception'."
        )
    return SmallNetwork()
