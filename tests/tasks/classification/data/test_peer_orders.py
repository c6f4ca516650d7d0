from __future__ import annotations

import random

import pytest
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.classification.data.peer_orders import PeerOrders
from taskdistill.tasks.openmm.seeded import SeededDataset


class Numbers:
    """Image i is full of i, with an augmentation that draws a number of its own."""

    metainfo = {"classes": ("a", "b")}

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        drawn = random.random()
        return dict(inputs=torch.tensor([[[float(index), drawn]]]), data_samples=index)


def seen(data: PeerOrders, start: int = 0) -> torch.Tensor:
    """(orders, length): which sample each network sees at each place."""
    return torch.stack([data[start + i]["data_samples"] for i in range(len(data))], 1)


def test_every_network_sees_every_sample_in_an_order_of_its_own():
    data = PeerOrders(Numbers(), orders=3)
    found = seen(data)
    assert found[0].tolist() == list(range(12))
    for order in found:
        assert sorted(order.tolist()) == list(range(12))
    assert len({tuple(order.tolist()) for order in found}) == 3


def test_images_and_labels_belong_together():
    data = PeerOrders(Numbers(), orders=2)
    for i in range(len(data)):
        item = data[i]
        assert item["inputs"].shape == (2, 1, 1, 2)
        assert item["inputs"][:, 0, 0, 0].tolist() == item["data_samples"].tolist()


def test_seed_epoch_and_pass_decide():
    def order(seed: int = 0, epoch: int = 0, lap: int = 0) -> list[int]:
        data = PeerOrders(Numbers(), orders=2)
        data.seed, data.epoch = seed, epoch
        return seen(data, lap * len(data) ** 2)[1].tolist()  # a pass is 12 numbered draws

    assert order() == order()
    orders = [order(), order(seed=1), order(epoch=1), order(lap=1)]
    assert len({tuple(each) for each in orders}) == 4


def test_the_epoch_may_change_while_it_is_used():
    data = PeerOrders(Numbers(), orders=2)
    first = seen(data)
    data.epoch = 1
    assert not torch.equal(seen(data), first)
    data.epoch = 0
    assert torch.equal(seen(data), first)


def test_the_deployed_network_sees_what_it_would_see_alone():
    data, alone = PeerOrders(Numbers(), orders=2), SeededDataset(Numbers())
    for each in (data, alone):
        each.seed, each.epoch = 5, 3
    for i in range(len(data)):
        assert torch.equal(data[i]["inputs"][0], alone[i]["inputs"])


def test_a_sample_is_augmented_otherwise_in_each_order():
    data = PeerOrders(Numbers(), orders=3)
    drawn = torch.full((3, 12), float("nan"))
    for i in range(12):
        item = data[i]
        for k in range(3):
            drawn[k, item["data_samples"][k]] = item["inputs"][k, 0, 0, 1]
    assert len(set(drawn.flatten().tolist())) == 36


def test_passes_without_epochs_draw_anew():
    """As NumberedSampler counts: number * length + index."""
    data = PeerOrders(Numbers(), orders=2)
    items = [data[(12 * lap + i) * 12 + i] for lap in range(2) for i in range(12)]
    for lap in range(2):
        labels = torch.stack([x["data_samples"] for x in items[12 * lap : 12 * lap + 12]])
        assert sorted(labels[:, 1].tolist()) == list(range(12))
    draws = [value for x in items for value in x["inputs"][:, 0, 0, 1].tolist()]
    assert len(set(draws)) == 48


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_whatever_the_workers(workers: int):
    data = PeerOrders(Numbers(), orders=2)
    loader = DataLoader(data, batch_size=5, num_workers=workers)  # type: ignore[arg-type]
    batches = list(loader)
    assert [tuple(b["inputs"].shape) for b in batches] == [(5, 2, 1, 1, 2)] * 2 + [(2, 2, 1, 1, 2)]
    labels = torch.cat([b["data_samples"] for b in batches])
    assert torch.equal(labels, seen(data).T)


def test_soft_labels_are_stacked():
    class Soft(Numbers):
        def __getitem__(self, index: int) -> dict:
            return dict(inputs=torch.zeros(1, 2, 2), data_samples=torch.tensor([0.3, 0.7]))

    assert PeerOrders(Soft(), orders=2)[0]["data_samples"].shape == (2, 2)


def test_it_is_a_data_set_as_the_one_inside():
    data = DATASETS.build(dict(type="PeerOrders", dataset=Numbers(), orders=2))
    assert len(data) == 12 and data.metainfo["classes"] == ("a", "b")
    assert data.length == 12


def test_the_models_random_numbers_go_on_undisturbed():
    data = PeerOrders(Numbers(), orders=2)
    state = random.getstate(), torch.get_rng_state()
    data[3]
    assert state[0] == random.getstate() and torch.equal(state[1], torch.get_rng_state())


def test_what_cannot_be_stacked():
    class Growing(Numbers):
        def __getitem__(self, index: int) -> dict:
            return dict(inputs=torch.zeros(1, 2, 2 + index), data_samples=0)

    with pytest.raises(DataError, match="one size"):
        for i in range(12):
            PeerOrders(Growing(), orders=2)[i]
    for orders in (0, 1.5, True):
        with pytest.raises(ConfigError, match="orders="):
            PeerOrders(Numbers(), orders=orders)  # type: ignore[arg-type]
