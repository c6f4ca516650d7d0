"""A small fixed network for image distances where the Inception weights are not at hand."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from ....core.errors import ShapeError
from .network import FeatureNetwork

__all__ = ["SmallNetwork"]

_SEED = 2020
_WIDTHS = (16, 24, 32)
_FLAT = 4  # filters of the first stage that see brightness and colour; the others see contrast
_CONTRAST = 4.0  # and see it enlarged, as photographs have little of it
_SLOPE = 0.2
_GRID = 4  # places a side
_SIDE = 64  # what a larger image's smaller side is resized to
_SMALLEST = 8
_SCALE = 16.0


class SmallNetwork(FeatureNetwork):
    """Random features of images: a distance for small sets, and no FID.

    Three 3x3 convolutions (16, 24 and 32 channels) with leaky ReLUs of slope 0.2, each on half the
    resolution of the one before. The responses of all three are averaged over a grid of 4 x 4
    places, so that an image gives 16 vectors of 72 numbers, and some dozens of images are enough
    for a covariance. Of the first 16 filters 4 see brightness and colour, and 12 contrast, four
    times enlarged. The weights are untrained, orthogonal, and always the same: drawn in float64
    from a fixed seed and rounded to multiples of 1/4096, so that machines agree.

    A random network sees colours, edges and texture, but no objects. Its Frechet distance
    (`SmallFD`) orders models of one data set; it can be compared neither with a FID nor over data
    sets or image sizes. Features are multiplied by 16, which gives figures that are easy to read:
    photographs of 64 x 64 pixels against themselves with noise of a standard deviation of 5, 20
    and 80 (of 255) give about 5, 100 and 1700.

    Shapes:
        uint8 (B, C, H, W) in, C of 1 or 3, H and W at least 8; float32 (B, 16, 72) out. An image
        whose smaller side is above 64 is resized so that it is 64 (bilinear, antialiased).

    Raises:
        ShapeError: In use, for images that are too small.

    Reference:
        Naeem, Oh, Uh, Choi, Yoo: Reliable Fidelity and Diversity Metrics for Generative Models,
        ICML 2020 (arXiv 2002.09797), on embeddings by networks with random weights.

    Example:
        >>> network = SmallNetwork()
        >>> network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 16, 72])
        >>> network.figure
        'SmallFD'
    """

    figure = "SmallFD"
    kernel_figure = "SmallKD"
    dims = sum(_WIDTHS)
    kernel_gamma = 1 / (sum(_WIDTHS) * _GRID**2 * _SCALE**2)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_SEED)
        digest = hashlib.sha256()
        before = 3
        for stage, width in enumerate(_WIDTHS):
            weight = _orthogonal(width, before, generator, flat=_FLAT if stage == 0 else width)
            self.register_buffer(f"weight{stage}", weight)
            digest.update(weight.numpy().tobytes())
            before = width
        self.identity = f"small 1 {digest.hexdigest()}"

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < _SMALLEST:
            raise ShapeError(
                f"the small network needs images of at least {_SMALLEST} x {_SMALLEST} pixels, got "
                f"{height} x {width}. Enlarge them, or take the network 'inception'."
            )
        maps = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
        if (smaller := min(height, width)) > _SIDE:
            size = [round(side * _SIDE / smaller) for side in (height, width)]
            maps = F.interpolate(maps, size, mode="bilinear", antialias=True)
        pooled = []
        for stage in range(len(_WIDTHS)):
            if stage:
                maps = F.avg_pool2d(maps, 2)
            weight: Tensor = self.get_buffer(f"weight{stage}")
            maps = F.leaky_relu(F.conv2d(F.pad(maps, (1, 1, 1, 1), "reflect"), weight), _SLOPE)
            pooled.append(F.adaptive_avg_pool2d(maps, _GRID))
        return _SCALE * torch.cat(pooled, 1).flatten(2).mT


def _orthogonal(rows: int, channels: int, generator: torch.Generator, flat: int) -> Tensor:
    """3x3 filters at right angles to one another; those after the first `flat` sum to 0.

    Drawn and factored in float64 and rounded coarsely: what libraries do differently in the last
    bits is gone.

    Returns:
        float32, (rows, channels, 3, 3).
    """
    drawn = torch.randn(rows, channels, 9, generator=generator, dtype=torch.float64)
    drawn[flat:] -= drawn[flat:].mean(-1, keepdim=True)
    # The factorisation keeps what the first columns span: those that sum to 0 come first.
    columns = drawn.flatten(1).flip(0).mT
    q, r = torch.linalg.qr(columns)
    q = q * r.diagonal().sign()  # which sign the factorisation gives is the library's choice
    filters = q.mT.flip(0).clone()
    filters[flat:] *= _CONTRAST
    return (filters.mul(4096).round() / 4096).float().view(rows, channels, 3, 3).contiguous()
