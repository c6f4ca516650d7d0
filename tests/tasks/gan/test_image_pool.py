from __future__ import annotations

import random

import pytest
import torch

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.gan.image_pool import ImagePool


def numbered(*numbers: float) -> torch.Tensor:
    return torch.stack([torch.full((1, 2, 2), float(n)) for n in numbers])


def seen(images: torch.Tensor) -> list[float]:
    return images[:, 0, 0, 0].tolist()


def test_fills_first_and_gives_images_back_as_they_are():
    pool = ImagePool(3)
    assert seen(pool.query(numbered(1, 2))) == [1, 2]
    assert seen(pool.query(numbered(3))) == [3]
    assert seen(torch.stack(pool.images)) == [1, 2, 3]


def test_full_it_swaps_half_of_the_time_and_loses_none():
    pool = ImagePool(5)
    pool.query(numbered(*range(5)))
    random.seed(0)
    given, back = [*range(5)], []
    for number in range(5, 405):
        given.append(number)
        back += seen(pool.query(numbered(number)))
    swapped = sum(b != g for b, g in zip(back, given[5:], strict=True))
    assert 160 <= swapped <= 240
    # Whatever went in came out once or is still there.
    assert sorted([*back, *seen(torch.stack(pool.images))]) == given


def test_of_size_0_it_is_no_pool():
    images = numbered(1, 2)
    assert ImagePool(0).query(images) is images


def test_state_goes_on_where_it_was():
    first, second = ImagePool(4), ImagePool(4)
    first.query(numbered(*range(4)))
    second.load_state_dict(first.state_dict())
    first.images[0].add_(9)  # copies, not the same memory
    second_images = seen(torch.stack(second.images))
    assert second_images == [0, 1, 2, 3]
    random.seed(1)
    a = [seen(second.query(numbered(n))) for n in range(9)]
    third = ImagePool(4)
    third.query(numbered(*range(4)))
    random.seed(1)
    assert a == [seen(third.query(numbered(n))) for n in range(9)]


def test_images_of_another_size_are_given_back_as_they_are():
    pool = ImagePool(1)
    pool.query(numbered(1))
    random.seed(3)
    larger = [pool.query(torch.full((1, 1, 4, 4), float(n))) for n in range(8)]
    assert {image.shape for image in larger} == {torch.Size([1, 1, 4, 4])}


def test_holds_nothing_of_the_graph():
    pool = ImagePool(2)
    image = torch.ones(1, 1, 2, 2, requires_grad=True) * 2
    assert not pool.query(image).requires_grad and not pool.images[0].requires_grad


def test_a_negative_size_is_refused():
    with pytest.raises(ConfigError, match="size=-1"):
        ImagePool(-1)
