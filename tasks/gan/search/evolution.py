"""Search a super-network for its best configuration under a budget."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....core.errors import ConfigError, did_you_mean
from .records import EVALUATIONS_FILE, STATE_FILE, Evaluated, Records, State
from .space import Channels, ChannelSpace, encode

__all__ = ["METHODS", "Criterion", "Search", "SearchResult", "Standing", "feasible"]

METHODS = ("auto", "exhaustive", "evolutionary")

_LOWER = ("fid", "smallfd", "kid", "smallkd", "l1", "l2", "mae", "mse", "rmse", "lpips")
_HIGHER = ("psnr", "ssim", "msssim", "miou", "iou", "aacc", "macc", "accuracy", "is")

# Draws that may be over the budget, or repeat another, before something else is done.
_TRIES = 100


@dataclass(frozen=True)
class Criterion:
    """The validation figure that decides, and which way.

    Args:
        metric: Its name, with or without the prefix before a slash.
        higher: Whether more is better. None looks the name up: FID, SmallFD, KID, L1, MSE, LPIPS
            and the like are to be low; PSNR, SSIM, mIoU and the like high.

    Raises:
        ConfigError: If the direction is not given and the name is not known.

    Example:
        >>> Criterion("SmallFD").higher, Criterion("seg/mIoU").higher
        (False, True)
        >>> Criterion("FID").of(dict(FID=3.0, L1=0.1))
        3.0
    """

    metric: str
    higher: bool | None = None

    def __post_init__(self) -> None:
        if self.higher is not None:
            return
        name = self.metric.rpartition("/")[2].lower().replace("-", "").replace("_", "")
        if name not in (*_LOWER, *_HIGHER):
            raise ConfigError(
                f"Whether a higher or a lower {self.metric!r} is better is not known. Say so with "
                "--higher-is-better or --no-higher-is-better."
            )
        object.__setattr__(self, "higher", name in _HIGHER)

    def of(self, metrics: Mapping[str, float]) -> float:
        """Return the figure.

        Raises:
            ConfigError: If it is not among ``metrics``, or several are meant.
        """
        if self.metric in metrics:
            return metrics[self.metric]
        found = [name for name in metrics if name.rpartition("/")[2] == self.metric]
        if len(found) == 1:
            return metrics[found[0]]
        raise ConfigError(
            f"The metric {self.metric!r} is not one figure of the evaluation, which gives "
            f"{', '.join(metrics) or 'none'}.{did_you_mean(self.metric, metrics)} Set --metric, or "
            "add it to val_evaluator."
        )

    def order(self, entry: Evaluated) -> tuple[float, int, Channels]:
        """Return what to sort by, best first: the figure, then fewer multiply-accumulates."""
        value = self.of(entry.metrics)
        if math.isnan(value):
            value = math.inf  # of no use, and never the best
        elif self.higher:
            value = -value
        return value, entry.macs, entry.channels


@dataclass(frozen=True)
class Standing:
    """How far a search is.

    Attributes:
        generation: The one that is evaluated now; 0 is the first population.
        generations: The last one.
        done: Configurations of this generation that are evaluated.
        total: Configurations of this generation.
        evaluated: Different configurations so far.
        best: The best so far, None before the first.
    """

    generation: int
    generations: int
    done: int
    total: int
    evaluated: int
    best: Evaluated | None


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        evaluated: Every configuration, in the order of evaluation.
        best: The best within the budget.
        method: "exhaustive" or "evolutionary".
        generations: Generations bred from the first population.
    """

    evaluated: tuple[Evaluated, ...]
    best: Evaluated
    method: str
    generations: int


def feasible(
    space: ChannelSpace, macs: Callable[[Channels], int], budget: float
) -> Iterator[Channels]:
    """Yield the configurations within a budget, one by one, in the order of the space.

    Branches that are over it with everything else at its narrowest are left out as a whole, so
    that the first few of a large space come fast.

    Args:
        space: The configurations.
        macs: Their multiply-accumulates; must not fall where a stage gets wider.
        budget: The most they may be.

    Example:
        >>> list(feasible(ChannelSpace([[3, 2], [5, 1]]), lambda c: c[0] * c[1], 10))
        [(3, 1), (2, 5), (2, 1)]
    """
    smallest = space.smallest

    def branch(prefix: Channels) -> Iterator[Channels]:
        if macs(prefix + smallest[len(prefix) :]) > budget:
            return
        if len(prefix) == len(smallest):
            yield prefix
            return
        for width in space.choices[len(prefix)]:
            yield from branch((*prefix, width))

    yield from branch(())


class Search:
    """The best configuration of a space under a budget, exhaustively or by evolution.

    Where few configurations are within the budget, all are evaluated. Otherwise evolution, as in
    the fast version of GAN compression: a first population at random; then in every generation the
    best become parents, half of their children are mutations of one, the other half crossovers of
    two, and parents and children are the next population. What is over the budget is drawn again
    (after 100 times in vain, made narrower until it fits), as are twins within a generation. A
    configuration is evaluated once.

    Each result is on disk before the next is asked for, and the state after each generation. A
    search that was killed continues, and ends with the result of one that was not.

    Args:
        space: The configurations.
        evaluate: Returns their validation figures in order. It may yield them one by one: what has
            been yielded survives an interruption.
        macs: Multiply-accumulates; must not fall where a stage gets wider.
        criterion: The figure that decides.
        budget: The most multiply-accumulates.
        folder: For ``evaluations.jsonl`` and ``state.json``; made if absent.
        method: "exhaustive", "evolutionary", or "auto": the former up to ``limit`` configurations.
        limit: 512.
        population: Children a generation, 100 in the authors' code.
        parents: The fraction of a population that breeds, 0.25 there.
        mutation: The fraction of mutations among the children, 0.5 there.
        probability: That a mutation draws a stage anew, 0.2 there.
        generations: Bred after the first population; 20, for theirs is 500 and the gain late. Not
            part of the search's identity: a finished one goes on where more are asked for.
        seed: Of every choice by chance.
        identity: What else decides the outcome (checkpoint, data), as plain JSON; a folder of
            another search is refused.
        notify: Called after every evaluation.

    Raises:
        ConfigError: If a number is out of range, or no configuration is within the budget.
        CheckpointError: If the folder holds another search, or damaged files.

    Reference:
        Li, Lin, Ding, Liu, Zhu, Han: GAN Compression: Efficient Architectures for Interactive
        Conditional GANs, CVPR 2020 and TPAMI 2021 (arXiv 2003.08936); the evolution follows Cai,
        Gan, Wang, Zhang, Han: Once-for-All, ICLR 2020 (arXiv 1908.09791).

    Example:
        >>> import tempfile
        >>> space = ChannelSpace([[3, 2, 1]] * 2)
        >>> search = Search(
        ...     space,
        ...     evaluate=lambda configs: [dict(FID=10.0 - a - 2 * b) for a, b in configs],
        ...     macs=lambda c: c[0] * c[1],
        ...     criterion=Criterion("FID"),
        ...     budget=4,
        ...     folder=Path(tempfile.mkdtemp()),
        ... )
        >>> result = search.run()
        >>> result.method, len(result.evaluated), result.best.channels
        ('exhaustive', 6, (1, 3))
    """

    def __init__(
        self,
        space: ChannelSpace,
        evaluate: Callable[[list[Channels]], Iterable[Mapping[str, float]]],
        macs: Callable[[Channels], int],
        criterion: Criterion,
        budget: float,
        folder: Path,
        *,
        method: str = "auto",
        limit: int = 512,
        population: int = 100,
        parents: float = 0.25,
        mutation: float = 0.5,
        probability: float = 0.2,
        generations: int = 20,
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
        notify: Callable[[Standing], None] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(
                f"A search has no method {method!r}; there are {', '.join(METHODS)}."
                f"{did_you_mean(method, METHODS)}"
            )
        if population < 2 or limit < 0 or generations < 0:
            raise ConfigError(
                "A search needs a population of at least 2, and limit and generations of at least "
                f"0, got population={population}, limit={limit}, generations={generations}."
            )
        fractions = dict(parents=parents, mutation=mutation, probability=probability)
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} of a search is a fraction from 0 to 1, got {value}.")
        self.space, self.evaluate, self.macs = space, evaluate, macs
        self.criterion, self.budget, self.folder = criterion, budget, Path(folder)
        self.method, self.limit = method, limit
        self.population = population
        self.parents = max(1, round(parents * population))
        self.mutations = round(mutation * population)
        self.probability, self.generations = probability, generations
        self.seed = seed
        self.notify = notify
        self.identity = {
            **(identity or {}),
            "space": space.choices,
            "metric": criterion.metric,
            "higher is better": criterion.higher,
            "budget": budget,
            "method": method,
            "limit": limit,
            "population": population,
            **fractions,
            "seed": seed,
        }
        least = macs(space.smallest)
        if least > budget:
            raise ConfigError(
                f"No configuration is within {budget:,} multiply-accumulates: the smallest, "
                f"{encode(space.smallest)}, needs {least:,}. Raise the budget, or train a "
                "super-network with narrower choices."
            )

    def run(self) -> SearchResult:
        """Search, from where an earlier run in the folder stopped.

        Raises:
            CheckpointError: If the folder holds another search, or damaged files.
            ConfigError: If the criterion is not among the figures, or never a finite number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE_FILE
        state = State.read(path, self.identity)
        with Records(self.folder / EVALUATIONS_FILE) as records:
            # First of all: evaluations without it would belong to nobody.
            state.write(path)
            few = self._few()
            if few is not None:
                self._evaluate(few, records, 0, 0)
            else:
                self._evolve(state, path, records)
        evaluated = tuple(records.entries.values())
        best = min(evaluated, key=self.criterion.order)
        if math.isnan(self.criterion.of(best.metrics)):
            raise ConfigError(
                f"{self.criterion.metric} is a finite number for none of the {len(evaluated)} "
                "configurations. Look at the super-network's own validation first."
            )
        method = "evolutionary" if few is None else "exhaustive"
        return SearchResult(evaluated, best, method, state.generation)

    def _few(self) -> list[Channels] | None:
        """All within the budget, or None where evolution is to choose."""
        if self.method == "evolutionary":
            return None
        found = feasible(self.space, self.macs, self.budget)
        if self.method == "exhaustive":
            return list(found)
        few = list(itertools.islice(found, self.limit + 1))
        return few if len(few) <= self.limit else None

    def _evolve(self, state: State, path: Path, records: Records) -> None:
        rng = random.Random(self.seed)
        if state.rng is not None:
            rng.setstate(state.rng)
        while not state.population or state.generation < self.generations:
            if not state.population:
                first = self._different(
                    self.population, [], lambda: self._within(lambda: self.space.sample(rng), rng)
                )
                self._evaluate(first, records, 0, self.generations)
                state.population = first
            else:
                ranked = sorted(
                    state.population, key=lambda c: self.criterion.order(records.entries[c])
                )
                parents = ranked[: self.parents]
                children = self._breed(parents, rng)
                self._evaluate(children, records, state.generation + 1, self.generations)
                state.population = parents + children
                state.generation += 1
            state.rng = rng.getstate()
            state.write(path)

    def _breed(self, parents: list[Channels], rng: random.Random) -> list[Channels]:
        def mutation() -> Channels:
            parent = rng.choice(parents)
            return self._within(lambda: self.space.mutate(parent, rng, self.probability), rng)

        def crossover() -> Channels:
            first, second = rng.choice(parents), rng.choice(parents)
            return self._within(lambda: self.space.crossover(first, second, rng), rng)

        mutants = self._different(self.mutations, parents, mutation)
        crossed = self.population - self.mutations
        return mutants + self._different(crossed, parents + mutants, crossover)

    def _within(self, draw: Callable[[], Channels], rng: random.Random) -> Channels:
        """A draw within the budget."""
        channels = draw()
        for _ in range(_TRIES):
            if self.macs(channels) <= self.budget:
                return channels
            channels = draw()
        while self.macs(channels) > self.budget:
            channels = self.space.narrow(channels, rng)
        return channels

    def _different(
        self, count: int, others: list[Channels], draw: Callable[[], Channels]
    ) -> list[Channels]:
        """Up to ``count`` draws, none twice and none among ``others``; fewer where all are alike.

        What was evaluated in generations long gone may come again: to know it here would make the
        draws depend on where an interrupted generation stopped.
        """
        seen = set(others)
        found: list[Channels] = []
        for _ in range(count):
            for _ in range(_TRIES):
                channels = draw()
                if channels not in seen:
                    seen.add(channels)
                    found.append(channels)
                    break
            else:
                break
        return found

    def _evaluate(
        self, wanted: list[Channels], records: Records, generation: int, generations: int
    ) -> None:
        new = [channels for channels in wanted if channels not in records.entries]
        best = min(records.entries.values(), key=self.criterion.order, default=None)
        if not new:
            return
        for done, (channels, metrics) in enumerate(
            zip(new, self.evaluate(new), strict=True), len(wanted) - len(new) + 1
        ):
            entry = Evaluated(channels, self.macs(channels), metrics)
            self.criterion.of(entry.metrics)  # a name that is not there ends it here
            records.add(entry)
            if best is None or self.criterion.order(entry) < self.criterion.order(best):
                best = entry
            if self.notify is not None:
                self.notify(
                    Standing(generation, generations, done, len(wanted), len(records.entries), best)
                )
