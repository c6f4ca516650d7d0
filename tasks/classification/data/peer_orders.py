"""Several orders of the same data at once, one for each of several networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS

from ....core.errors import ConfigError, DataError
from ...openmm.seeded import SeededDataset

__all__ = ["PeerOrders"]


@DATASETS.register_module()
class PeerOrders(SeededDataset):
    """Give each of several networks all samples of an epoch in an order of its own.

    Item i stacks the samples that networks 0, 1, ... see at place i: network k sees sample
    :math:`\\pi_k(i)`, where :math:`\\pi_0` is the identity and the others are permutations drawn
    from (seed, epoch, k). So in an epoch each network sees each sample once, in batches and with an
    augmentation of its own. Network 0 sees what :class:`.SeededDataset` would give.

    Stands in the place of :class:`.SeededDataset` and is seeded like it, so that a resumed run
    repeats itself. In training by iterations an epoch is a pass through the data.

    Args:
        dataset: The dataset, or its config. Its samples are ``dict(inputs=Tensor (C, H, W),
            data_samples=label)``, all images of one size.
        orders: How many networks there are, the deployed one included.

    Returns:
        Of item i: ``inputs`` (orders, C, H, W) and ``data_samples`` (orders,), or
        (orders, classes) of soft labels.

    Raises:
        ConfigError: If ``orders`` is no number above 0.
        DataError: From an item, if images of two orders differ in size.

    Example:
        >>> class Numbers:
        ...     def __len__(self):
        ...         return 5
        ...     def __getitem__(self, index):
        ...         return dict(inputs=torch.full((1, 2, 2), index), data_samples=index)
        >>> data = PeerOrders(Numbers(), orders=3)
        >>> data[1]["inputs"].shape, data[1]["data_samples"][0].item()
        (torch.Size([3, 1, 2, 2]), 1)
        >>> sorted(data[i]["data_samples"][2].item() for i in range(5))
        [0, 1, 2, 3, 4]
    """

    def __init__(self, dataset: dict[str, Any] | Any, orders: int = 2) -> None:
        if not isinstance(orders, int) or isinstance(orders, bool) or orders < 1:
            raise ConfigError(
                f"orders={orders!r} of PeerOrders; expected how many networks there are, 1 or more."
            )
        super().__init__(dataset)
        self.orders = orders
        self._drawn: tuple[tuple[int, ...], np.ndarray] | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = len(self)
        number, index = divmod(int(index), length)
        # The number of the draw only rises; a pass is as many of them as there are samples.
        places = self._permutations(number // length)[:, index]
        samples = [
            # Each order has draws of its own, so that a sample is augmented otherwise in each.
            super(PeerOrders, self).__getitem__((number * self.orders + k) * length + int(place))
            for k, place in enumerate(places)
        ]
        sizes = {tuple(sample["inputs"].shape) for sample in samples}
        if len(sizes) > 1:
            raise DataError(
                f"PeerOrders stacks images of one size, but samples {places.tolist()} have "
                f"{sorted(sizes)}. Crop or resize them in the data set."
            )
        return {
            "inputs": torch.stack([sample["inputs"] for sample in samples]),
            "data_samples": torch.stack([torch.as_tensor(s["data_samples"]) for s in samples]),
        }

    def _permutations(self, lap: int) -> np.ndarray:
        """The order of each network, (orders, length); drawn once for an epoch."""
        key = (self.seed, self.epoch, lap)
        if self._drawn is None or self._drawn[0] != key:
            orders: list[np.ndarray] = [np.arange(len(self))]
            for k in range(1, self.orders):
                generator = np.random.default_rng(np.random.SeedSequence([*key, k]))
                orders.append(generator.permutation(len(self)))
            self._drawn = key, np.stack(orders)
        return self._drawn[1]
