from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from taskdistill.core.errors import CheckpointError, ConfigError  # noqa: E402
from taskdistill.tasks.gan.search.evolution import (  # noqa: E402
    Criterion,
    Search,
    SearchResult,
    Standing,
    feasible,
)
from taskdistill.tasks.gan.search.records import Evaluated  # noqa: E402
from taskdistill.tasks.gan.search.space import Channels, ChannelSpace  # noqa: E402

SMALL = ChannelSpace([[4, 3, 2, 1]] * 4)
LARGE = ChannelSpace([[32, 28, 24, 20, 16, 12, 8, 4]] * 8)


def macs(c: Channels) -> int:
    return sum(a * b for a, b in itertools.pairwise(c)) + sum(c)


def figure(c: Channels) -> float:
    """Lower is better: width helps, less and less, and more in the later stages."""
    return sum((index + 1) / width for index, width in enumerate(c)) + 1e-3 * (hash(c) % 7)


def evaluate(configs: list[Channels]) -> Iterator[dict[str, float]]:
    for c in configs:
        yield dict(FID=figure(c))


def search(
    folder: Path, space: ChannelSpace = LARGE, budget: float = 900, **options: Any
) -> Search:
    options = dict(criterion=Criterion("FID"), population=20, generations=4) | options
    return Search(space, options.pop("evaluate", evaluate), macs, budget=budget, folder=folder,
                  **options)  # fmt: skip


# -- within the budget -----------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True), min_size=1,
             max_size=4),
    st.integers(0, 120),
)  # fmt: skip
def test_feasible_is_what_brute_force_finds(choices: list[list[int]], budget: int):
    space = ChannelSpace(choices)
    assert list(feasible(space, macs, budget)) == [c for c in space if macs(c) <= budget]


def test_the_first_few_of_a_huge_space_come_fast():
    space = ChannelSpace([range(1, 65)] * 12)
    asked = 0

    def counted(c: Channels) -> int:
        nonlocal asked
        asked += 1
        return macs(c)

    found = list(itertools.islice(feasible(space, counted, macs(space.smallest) + 30), 500))
    assert len(found) == len(set(found)) == 500
    assert asked < 500 * 12 * 64


# -- exhaustive ------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [False, True])
def test_exhaustive_is_brute_force(tmp_path: Path, higher: bool):
    found = search(tmp_path, SMALL, 30, criterion=Criterion("FID", higher)).run()
    within = [c for c in SMALL if macs(c) <= 30]
    assert 0 < len(within) < len(SMALL)
    assert found.method == "exhaustive"
    assert [entry.channels for entry in found.evaluated] == within
    pick = max if higher else min
    assert found.best.channels == pick(within, key=figure)
    assert found.best.macs == macs(found.best.channels) <= 30


def test_auto_turns_to_evolution_beyond_the_limit(tmp_path: Path):
    within = sum(macs(c) <= 30 for c in SMALL)
    few = search(tmp_path / "a", SMALL, 30, limit=within).run()
    many = search(tmp_path / "b", SMALL, 30, limit=within - 1).run()
    assert (few.method, many.method) == ("exhaustive", "evolutionary")
    forced = search(tmp_path / "c", SMALL, 30, limit=0, method="exhaustive").run()
    assert forced.best == few.best


# -- evolution -------------------------------------------------------------------------------------


def test_evolution_beats_as_many_random_samples(tmp_path: Path):
    found = search(tmp_path, population=40, generations=10).run()
    assert found.method == "evolutionary" and found.generations == 10
    rng, others = random.Random(1), set()
    while len(others) < len(found.evaluated):
        if macs(c := LARGE.sample(rng)) <= 900:
            others.add(c)
    assert figure(found.best.channels) < min(map(figure, others)) - 0.1


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), slack=st.integers(0, 3000))
def test_the_budget_is_never_exceeded(tmp_path_factory: Any, seed: int, slack: int):
    budget = macs(LARGE.smallest) + slack
    folder = tmp_path_factory.mktemp("search")
    found = search(folder, budget=budget, seed=seed, method="evolutionary", generations=2).run()
    assert all(macs(entry.channels) == entry.macs <= budget for entry in found.evaluated)
    assert all(entry.channels in LARGE for entry in found.evaluated)


def test_nothing_is_evaluated_twice_and_the_best_stay(tmp_path: Path):
    asked: list[Channels] = []
    bests: list[float] = []

    def counted(configs: list[Channels]) -> Iterator[dict[str, float]]:
        asked.extend(configs)
        return evaluate(configs)

    def note(now: Standing) -> None:
        assert now.best is not None
        bests.append(now.best.metrics["FID"])

    found = search(tmp_path, evaluate=counted, notify=note).run()
    assert len(asked) == len(set(asked)) == len(found.evaluated) == len(bests)
    assert bests == sorted(bests, reverse=True)
    assert bests[-1] == found.best.metrics["FID"]


def test_a_seed_repeats_itself_and_another_differs(tmp_path: Path):
    a, b, c = (search(tmp_path / n, seed=s).run() for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert a == b and a.evaluated != c.evaluated


def test_a_space_smaller_than_the_population(tmp_path: Path):
    tiny = ChannelSpace([[2, 1]] * 2)
    found = search(tmp_path, tiny, 100, method="evolutionary").run()
    assert {entry.channels for entry in found.evaluated} == set(tiny)


def test_where_nearly_nothing_fits_it_is_made_narrower(tmp_path: Path):
    space = ChannelSpace([[64, 2, 1]] * 10)
    found = search(tmp_path, space, macs(space.smallest) + 2, method="evolutionary").run()
    assert len(found.evaluated) >= 2
    assert all(entry.macs <= macs(space.smallest) + 2 for entry in found.evaluated)


# -- interrupted -----------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(count: int) -> Any:
    left = count

    def evaluate_some(configs: list[Channels]) -> Iterator[dict[str, float]]:
        nonlocal left
        for c in configs:
            if left == 0:
                raise Killed
            left -= 1
            yield dict(FID=figure(c))

    return evaluate_some


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: Any) -> tuple[SearchResult, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("unbroken")
    return search(folder).run(), {p.name: p.read_bytes() for p in folder.iterdir()}


@settings(max_examples=30)
@given(points=st.lists(st.integers(0, 60), min_size=1, max_size=3), torn=st.booleans())
def test_a_killed_search_ends_bit_for_bit_as_an_unbroken_one(
    tmp_path_factory: Any,
    unbroken: tuple[SearchResult, dict[str, bytes]],
    points: list[int],
    torn: bool,
):
    folder = tmp_path_factory.mktemp("killed")
    for point in points:
        try:
            search(folder, evaluate=killed_after(point)).run()
        except Killed:
            pass
        if torn:
            with (folder / "evaluations.jsonl").open("ab") as file:
                file.write(b'{"channels": "4_4_')
    assert search(folder).run() == unbroken[0]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == unbroken[1]


def test_a_killed_exhaustive_search_too(tmp_path: Path):
    whole = search(tmp_path / "whole", SMALL, 30).run()
    with pytest.raises(Killed):
        search(tmp_path / "killed", SMALL, 30, evaluate=killed_after(7)).run()
    asked: list[Channels] = []

    def rest(configs: list[Channels]) -> Iterator[dict[str, float]]:
        asked.extend(configs)
        return evaluate(configs)

    assert search(tmp_path / "killed", SMALL, 30, evaluate=rest).run() == whole
    assert len(asked) == len(whole.evaluated) - 7


def test_a_finished_one_is_not_done_again_and_goes_on_where_more_is_asked(tmp_path: Path):
    first = search(tmp_path / "a", generations=2).run()
    assert search(tmp_path / "a", generations=2, evaluate=killed_after(0)).run() == first
    longer = search(tmp_path / "a", generations=4).run()
    assert longer == search(tmp_path / "b", generations=4).run()
    assert longer.evaluated[: len(first.evaluated)] == first.evaluated


@pytest.mark.parametrize(
    "change",
    [
        dict(budget=901), dict(seed=1), dict(population=21), dict(criterion=Criterion("L1")),
        dict(criterion=Criterion("FID", higher=True)), dict(identity=dict(checkpoint="b")),
        dict(space=ChannelSpace([[32, 4]] * 8)), dict(probability=0.3),
    ],
)  # fmt: skip
def test_another_search_in_the_same_folder_is_refused(tmp_path: Path, change: dict):
    same = dict(identity=dict(checkpoint="a"), generations=0)
    search(tmp_path, **same).run()  # type: ignore[arg-type]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="--fresh"):
        search(tmp_path, **(same | change)).run()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- what cannot be --------------------------------------------------------------------------------


def test_a_budget_below_the_smallest(tmp_path: Path):
    least = macs(LARGE.smallest)
    with pytest.raises(ConfigError, match=f"smallest, 4_4_4_4_4_4_4_4, needs {least}"):
        search(tmp_path, budget=least - 1)
    assert list(tmp_path.iterdir()) == []
    assert search(tmp_path, budget=least).run().best.channels == LARGE.smallest


@pytest.mark.parametrize(
    "wrong",
    [dict(method="genetic"), dict(population=1), dict(generations=-1), dict(parents=1.5),
     dict(mutation=-0.1), dict(probability=2.0)],
)  # fmt: skip
def test_options_out_of_range(tmp_path: Path, wrong: dict):
    with pytest.raises(ConfigError):
        search(tmp_path, **wrong)


def test_a_metric_that_is_not_there_ends_it_at_the_first(tmp_path: Path):
    asked = 0

    def counted(configs: list[Channels]) -> Iterator[dict[str, float]]:
        nonlocal asked
        for c in configs:
            asked += 1
            yield dict(SmallFD=figure(c), L1=0.0)

    with pytest.raises(ConfigError, match="gives SmallFD, L1.*Did you mean 'SmallFD'"):
        search(tmp_path, evaluate=counted, criterion=Criterion("SmalFD", higher=False)).run()
    assert asked == 1


def test_nan_never_wins(tmp_path: Path):
    def some(configs: list[Channels]) -> Iterator[dict[str, float]]:
        for c in configs:
            yield dict(FID=math.nan if c[0] == 4 else figure(c))

    best = search(tmp_path / "a", SMALL, 30, evaluate=some).run().best
    assert best.channels == min((c for c in SMALL if macs(c) <= 30 and c[0] != 4), key=figure)
    with pytest.raises(ConfigError, match="finite number for none"):
        search(
            tmp_path / "b", SMALL, 30, evaluate=lambda cs: [dict(FID=math.inf) for _ in cs]
        ).run()


# -- criterion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "higher"),
    [("FID", False), ("KID", False), ("SmallFD", False), ("SmallKD", False),
     ("L1", False), ("gan/L1", False),
     ("PSNR", True), ("mIoU", True), ("ssim", True)],
)  # fmt: skip
def test_the_direction_is_known_by_name(name: str, higher: bool):
    assert Criterion(name).higher is higher
    assert Criterion(name, not higher).higher is not higher


def test_an_unknown_direction_is_asked_for():
    with pytest.raises(ConfigError, match="--no-higher-is-better"):
        Criterion("beauty")
    assert Criterion("beauty", True).higher is True


def test_a_prefix_may_be_left_out_where_one_is_meant():
    assert Criterion("FID").of({"gan/FID": 2.0, "gan/KID": 1.0}) == 2.0
    assert Criterion("a/FID").of({"a/FID": 2.0, "b/FID": 1.0}) == 2.0
    with pytest.raises(ConfigError, match="not one figure"):
        Criterion("FID").of({"a/FID": 2.0, "b/FID": 1.0})


def test_of_equal_figures_the_cheaper_is_better():
    entries = [Evaluated((c,), m, dict(FID=1.0)) for c, m in ((1, 30), (2, 10), (3, 10))]
    assert min(entries, key=Criterion("FID").order).channels == (2,)
