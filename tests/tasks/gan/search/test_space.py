from __future__ import annotations

import itertools
import random

import pytest

pytest.importorskip("mmengine")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.search.space import ChannelSpace, encode  # noqa: E402

SPACE = ChannelSpace([[32, 24, 16], [8], [16, 48]])

stages = st.lists(
    st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True), min_size=1, max_size=4
)


@given(stages)
def test_it_holds_every_combination_once(choices: list[list[int]]):
    space = ChannelSpace(choices)
    assert list(space) == list(itertools.product(*choices))
    assert len(space) == len(set(space))
    assert all(channels in space for channels in space)
    assert space.smallest == min(space) and space.largest == max(space)


def test_it_cannot_be_changed():
    choices = [[1, 2], [3]]
    space = ChannelSpace(choices)
    choices[0].append(7)
    assert len(space) == 2
    assert hash(space) == hash(ChannelSpace([(1, 2), (3,)])) and space == ChannelSpace(
        [[1, 2], [3]]
    )
    with pytest.raises(AttributeError):
        space.choices = ()  # type: ignore[misc]


@given(st.integers(), st.floats(0, 1))
def test_what_is_drawn_is_in_the_space_and_repeats_itself(seed: int, probability: float):
    def draws() -> list[tuple[int, ...]]:
        rng = random.Random(seed)
        first, second = SPACE.sample(rng), SPACE.sample(rng)
        return [
            first,
            second,
            SPACE.mutate(first, rng, probability),
            SPACE.crossover(first, second, rng),
            SPACE.narrow(first, rng),
        ]

    found = draws()
    assert found == draws()
    assert all(channels in SPACE for channels in found)


def test_samples_are_uniform():
    rng = random.Random(0)
    counts = {channels: 0 for channels in SPACE}
    for _ in range(6000):
        counts[SPACE.sample(rng)] += 1
    assert all(800 < count < 1200 for count in counts.values())


def test_mutations_draw_a_stage_with_their_probability():
    rng, space = random.Random(0), ChannelSpace([range(1, 1001)] * 10)
    start = space.sample(rng)
    assert space.mutate(start, rng, 0.0) == start
    changed = sum(
        a != b
        for _ in range(300)
        for a, b in zip(start, space.mutate(start, rng, 0.2), strict=True)
    )
    assert 500 < changed < 700  # 3000 stages, a fifth


def test_crossover_takes_each_stage_from_either():
    rng, space = random.Random(0), ChannelSpace([[1, 2]] * 8)
    found = [space.crossover((1,) * 8, (2,) * 8, rng) for _ in range(200)]
    assert all({f[stage] for f in found} == {1, 2} for stage in range(8))
    assert space.crossover((1,) * 8, (1,) * 8, rng) == (1,) * 8


def test_narrowing_ends_at_the_smallest():
    rng, channels = random.Random(0), SPACE.largest
    for _ in range(3):  # two steps in the first stage, one in the last
        narrower = SPACE.narrow(channels, rng)
        assert sum(a != b for a, b in zip(channels, narrower, strict=True)) == 1
        assert sum(narrower) < sum(channels)
        channels = narrower
    assert channels == SPACE.smallest
    assert SPACE.narrow(channels, rng) == SPACE.smallest


def test_checks_say_what_is_wrong():
    assert SPACE.check([16, 8, 48]) == (16, 8, 48)
    with pytest.raises(ConfigError, match=r"3 stages, got 2: 16_8\."):
        SPACE.check((16, 8))
    with pytest.raises(ConfigError, match="Stage 0 of 20_8_16 has 20 channels.*nearest is 24"):
        SPACE.check((20, 8, 16))
    assert (20, 8, 16) not in SPACE and [16, 8, 48] not in SPACE


@pytest.mark.parametrize("wrong", [[[]], [[0]], [[-1, 2]], [[2, 2]], [[True]], [[1.5]], [["8"]]])
def test_a_stage_has_different_positive_integers(wrong: list):
    with pytest.raises(ConfigError, match="Stage 1"):
        ChannelSpace([[1], *wrong])


def test_there_is_at_least_one_stage():
    with pytest.raises(ConfigError, match="at least one stage"):
        ChannelSpace([])


def test_the_text_of_a_configuration():
    assert encode((16, 24, 8)) == "16_24_8"
