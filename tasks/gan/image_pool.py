"""A history of generated images, so that a discriminator does not forget earlier ones."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError

__all__ = ["ImagePool"]


class ImagePool:
    """Give back, half of the time, an image generated earlier instead of the new one.

    Until it is full, images are stored and given back as they are. Then, for each new image, with
    probability 1/2 a stored one is given back and the new one takes its place.

    Args:
        size: Images kept; 50 in the paper and in the release of CycleGAN, 0 (no history) for
            pix2pix.

    Raises:
        ConfigError: If the size is negative.

    Reference:
        Shrivastava et al.: Learning from Simulated and Unsupervised Images through Adversarial
        Training, CVPR 2017, section 2.3; Zhu et al.: Unpaired Image-to-Image Translation using
        Cycle-Consistent Adversarial Networks, ICCV 2017, section 4 (arXiv 1703.10593).

    Example:
        >>> pool = ImagePool(2)
        >>> first = pool.query(torch.zeros(2, 3, 4, 4))
        >>> len(pool.images), pool.query(torch.ones(1, 3, 4, 4)).shape
        (2, torch.Size([1, 3, 4, 4]))
    """

    def __init__(self, size: int = 50) -> None:
        if size < 0:
            raise ConfigError(f"An image pool holds 0 images or more, got size={size}.")
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Return as many images ``(B, C, H, W)`` as were given, some of them from the history.

        Draws from Python's global random numbers, as the release does.
        """
        if self.size == 0:
            return images
        chosen = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
                chosen.append(image)
            elif random.random() < 0.5:
                place = random.randrange(self.size)
                chosen.append(self.images[place])
                self.images[place] = image.clone()
            else:
                chosen.append(image)
        # Images of another size than today's (a crop that changed) cannot be stacked with them.
        if any(image.shape != images.shape[1:] for image in chosen):
            return images
        return torch.stack([image.to(images) for image in chosen])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"size": self.size, "images": [image.cpu() for image in self.images]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a stored history; of a larger pool, with its first images."""
        self.images = [image.clone() for image in state["images"][: self.size]]
