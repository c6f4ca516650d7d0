from __future__ import annotations

import random

import pytest

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.search.macs import (  # noqa: E402
    MacsTable,
    macs_of,
    parse_budget,
    plain_generator,
)
from taskdistill.tasks.gan.search.space import Channels, ChannelSpace  # noqa: E402

SUPER = dict(type="SuperMobileResnetGenerator", space=[[48, 32, 24, 16]] * 8)


def channels(text: str) -> Channels:
    return tuple(map(int, text.split("_")))


def count(c: Channels, shape: tuple[int, int] = (256, 256)) -> int:
    return macs_of(plain_generator(SUPER, c), shape)


def table() -> MacsTable:
    return MacsTable(ChannelSpace(SUPER["space"]), count)  # type: ignore[arg-type]


def test_published_figures():
    assert macs_of(dict(type="ResnetGenerator"), (256, 256)) == 56_799_264_768
    found = table()
    assert found.exact_formula
    assert found(channels("32_32_48_32_48_48_16_16")) == 4_961_599_488
    for text, published in {
        "16_16_32_16_32_32_16_16": 2.525,
        "32_32_48_32_32_48_24_24": 5.560,
        "16_16_16_16_16_16_16_16": 1.408,
        "32_32_32_32_32_32_32_32": 4.929,
        "48_48_48_48_48_48_48_48": 10.565,
    }.items():
        assert found(channels(text)) / 1e9 == pytest.approx(published, abs=6e-4), text


def test_the_formula_equals_counting():
    found, rng = table(), random.Random(0)
    for _ in range(5):
        c = found.space.sample(rng)
        assert found(c) == count(c)


def test_the_image_size_counts():
    c = (16,) * 8
    assert count(c, (128, 256)) * 2 == count(c)


def test_a_network_of_another_kind_is_counted_one_by_one():
    space = ChannelSpace([[1, 2, 9], [3, 5]])
    counted: list[Channels] = []

    def cubic(c: Channels) -> int:
        counted.append(c)
        return c[0] ** 3 + c[1]

    found = MacsTable(space, cubic)
    assert not found.exact_formula
    assert [found(c) for c in space] == [c[0] ** 3 + c[1] for c in space]
    counted.clear()
    assert [found(c) for c in space] == [c[0] ** 3 + c[1] for c in space]
    assert counted == []  # known


def test_odd_differences_are_no_formula():
    found = MacsTable(ChannelSpace([[1, 4]]), lambda c: c[0] * (c[0] + 1) // 2)
    assert [found((1,)), found((4,))] == [1, 10]


def test_few_are_counted_however_large_the_space():
    counted: list[Channels] = []

    def product(c: Channels) -> int:
        counted.append(c)
        return sum(7 * a * b + 3 * a for a, b in zip(c, c[1:], strict=False))

    space = ChannelSpace([range(1, 33)] * 8)
    found, rng = MacsTable(space, product), random.Random(0)
    assert len(counted) == 45 + 3
    for _ in range(200):
        c = space.sample(rng)
        assert found(c) == sum(7 * a * b + 3 * a for a, b in zip(c, c[1:], strict=False))


def test_only_what_is_in_the_space():
    found = MacsTable(ChannelSpace([[1, 4]]), lambda c: c[0])
    with pytest.raises(ConfigError, match="Stage 0 of 3"):
        found((3,))


def test_an_image_that_does_not_fit():
    with pytest.raises(ConfigError, match="--shape"):
        count((16,) * 8, (1, 1))


def test_the_plain_generator_is_built_like_the_supernet():
    generator = dict(SUPER, in_channels=1, out_channels=2, blocks=6, norm="none", padding="zero")
    assert plain_generator(generator, (16,) * 8) == dict(
        type="MobileResnetGenerator",
        channels="16_16_16_16_16_16_16_16",
        in_channels=1,
        out_channels=2,
        blocks=6,
        norm="none",
        padding="zero",
    )
    assert macs_of(plain_generator(generator, (16,) * 8), (64, 64)) > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5.6G", 5_600_000_000), ("5.6e9", 5_600_000_000), (5.6e9, 5_600_000_000),
        (7, 7), ("900M", 900_000_000), ("2.5k", 2500), ("1T", 10**12), (" 3 G ", 3 * 10**9),
        (".5x", 100), ("0.2x", 40), ("1x", 200),
    ],
)  # fmt: skip
def test_budgets(text: str | float, expected: int):
    assert parse_budget(text, lambda: 200) == expected


@pytest.mark.parametrize("wrong", ["", "much", "5.6Q", "-3G", "5,6G", "0x", "0", "nan", "1e999"])
def test_wrong_budgets(wrong: str):
    with pytest.raises(ConfigError, match="Budget"):
        parse_budget(wrong, lambda: 200)


def test_a_fraction_needs_a_teacher():
    with pytest.raises(ConfigError, match="--teacher"):
        parse_budget("0.2x")
