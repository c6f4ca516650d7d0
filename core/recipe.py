"""What is matched with what: pairs, weights, schedules, stages.

A recipe is data, one line a pair::

    Recipe.from_config([
        dict(student="neck", loss="FeatureImitation", weight=2.0),
        dict(student="outputs.box", loss="LocalizationDistillation", region="main", weight=0.25),
    ])

``student`` and ``teacher`` are taps (:mod:`.taps`); a name under ``outputs.`` is something that
the task's adapter computes from the network's head, with targets and regions beside it. Whatever
key is not listed in :class:`Pair` is an argument of the loss. Where a loss compares several tensors
a side at once (queries and keys, two maps), they are joined by ``+``, or given as a list::

    dict(student="outputs.queries[-1] + outputs.keys[-1]", loss="AttentionQK")
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from . import losses as _losses
from .adapters import ADAPTERS
from .errors import ConfigError, did_you_mean
from .plateau import Plateau
from .taps import Tap

__all__ = [
    "OUTPUTS",
    "Pair",
    "Progress",
    "Recipe",
    "Stage",
    "members",
    "output_name",
    "resolve_loss",
]

OUTPUTS = "outputs."
"""Prefix of what a task computes, as opposed to what a module returns."""


def members(spec: str) -> list[str]:
    """The taps or outputs that one side of a pair joins.

    Example:
        >>> members("layer1 + layer2[0]")
        ['layer1', 'layer2[0]']
    """
    return [part.strip() for part in spec.split("+")]


def output_name(spec: str) -> str:
    """The name of an output, without prefix and selection.

    Example:
        >>> output_name("outputs.hidden_states[1:]")
        'hidden_states'
    """
    return spec.removeprefix(OUTPUTS).partition("[")[0]


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Args:
        step: Optimizer steps done so far.
        epoch: Epochs done so far; a fraction inside an epoch where its length is known.
        ended: Where stages ended earlier than they had to, in the recipe's unit, by name.
    """

    step: int = 0
    epoch: float = 0.0
    ended: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A named part of training.

    Args:
        name: What pairs refer to by ``stage=``.
        until: Where it ends, in the recipe's unit; ``None`` is the end of training.
        task_weight: Weight of the student's own losses in this stage (0 trains on the
            distillation terms alone, as a hint or FSP stage does).
        train: Modules of the student that are trained in it, by name or glob; ``None`` is all of
            them, an empty list none (a stage that trains only what losses learn themselves).
        freeze: Modules that are not; taken off from ``train``. See :mod:`.stages`.
        plateau: Ends the stage earlier: ``dict(patience=3)`` when the mean of ``monitor`` over an
            epoch (a figure of the training log; ``"loss"`` by default) has not fallen by the share
            ``min_delta`` (1e-3) of its best for that many epochs. See :class:`.plateau.Plateau`.
    """

    name: str
    until: float | None = None
    task_weight: float = 1.0
    train: Sequence[str] | None = None
    freeze: Sequence[str] = ()
    plateau: Mapping[str, Any] | None = None

    @property
    def holds(self) -> bool:
        """Whether some part of the student is not trained in it."""
        return self.train is not None or bool(self.freeze)


@dataclass(frozen=True)
class Pair:
    """One line of a recipe.

    Args:
        student: Tap on the student, or ``outputs.NAME``; several, joined by ``+`` or as a list, for
            a loss that compares several tensors a side at once.
        loss: Name of a class of :mod:`taskdistill.core.losses`, ``"package.module:Class"``, or a
            module.
        teacher: Tap on the teacher; the student's by default.
        weight: Factor on the loss, >= 0. Of a pair over several tensors (pyramid levels) it may be
            a list, one factor each: the term is then the mean of factor times value.
        name: How it is called in the log; made from the loss and the region by default.
        of: Which teacher, where there are several; the first by default.
        region: Positions to compare, named by the task (detection: ``"main"``, ``"vlr"``, ...;
            segmentation: ``"labelled"``). Of an output; of a tapped map where the task's regions
            are maps.
        avg_factor: What the weighted sum over positions is divided by, in place of the sum of the
            weights; for the fixed numbers of some papers' code.
        adapter: One of :data:`.adapters.ADAPTERS`, ``"auto"`` by default; see
            :class:`.adapters.Adapter`.
        start: Active from here, in the recipe's unit.
        stop: Active until here; ``None`` is the end.
        warmup: The weight rises linearly from 0 over this long after ``start``.
        final_weight: The weight goes linearly from ``weight``, at ``start``, to this, at ``stop``
            (FitNets' second stage: from 4 to 1).
        stage: Active in this stage only.
        options: Arguments of the loss (in a config: every other key of the line).
    """

    student: str
    loss: str | nn.Module
    teacher: str = ""
    weight: float | Sequence[float] = 1.0
    name: str = ""
    of: str | None = None
    region: str | None = None
    avg_factor: float | None = None
    adapter: str = "auto"
    start: float = 0.0
    stop: float | None = None
    warmup: float = 0.0
    final_weight: float | None = None
    stage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Pair:
        """Make a pair from one config line; unknown keys go to the loss.

        Raises:
            ConfigError: If a key is missing, has the wrong type, or the loss takes no such
                argument.
        """
        known = set(_PAIR_KEYS)
        if not isinstance(config, Mapping):
            raise ConfigError(f"A pair is dict(student=..., loss=..., ...), not {config!r}.")
        for key in ("student", "loss"):
            if key not in config:
                near = did_you_mean(key, [k for k in config if k not in known])
                raise ConfigError(f"Pair {dict(config)} has no {key!r}.{near}")
        own = {key: config[key] for key in known & set(config)}
        for key in ("student", "teacher"):
            if isinstance(own.get(key), (list, tuple)):
                own[key] = " + ".join(map(str, own[key]))
        options = {key: value for key, value in config.items() if key not in known}
        return cls(**own, options=options).completed()

    def completed(self) -> Pair:
        """Check the pair and fill in the teacher's tap and the name where they are left out.

        Raises:
            ConfigError: If anything in it cannot be meant.
        """
        pair = replace(self, teacher=self.teacher or self.student)
        if isinstance(pair.weight, (list, tuple)):
            pair = replace(pair, weight=tuple(pair.weight))
        _check_pair(pair)
        return replace(pair, name=pair.name or _default_name(pair))

    def build_loss(self) -> nn.Module:
        """Make the loss module."""
        loss = self.loss
        return loss if isinstance(loss, nn.Module) else resolve_loss(loss)(**self.options)

    @property
    def is_output(self) -> bool:
        """Whether it compares what the task computes, not what a module returns."""
        return self.student.startswith(OUTPUTS)

    @property
    def shares(self) -> tuple[float, ...] | None:
        """One factor a tensor, where the weight is a list."""
        return None if isinstance(self.weight, (int, float)) else tuple(self.weight)

    def factor(self, now: float, stage: str | None) -> float:
        """The weight at a point in time: 0 outside ``[start, stop)`` or its stage.

        Where the weight is a list, what is left of it beside :attr:`shares`: 1 and the warm-up.

        Example:
            >>> pair = Pair("neck", "FeatureImitation", weight=2.0, start=1, warmup=2)
            >>> [pair.factor(t, None) for t in (0.5, 1.0, 2.0, 3.0, 9.0)]
            [0.0, 0.0, 1.0, 2.0, 2.0]
        """
        if self.stage is not None and self.stage != stage:
            return 0.0
        if now < self.start or (self.stop is not None and now >= self.stop):
            return 0.0
        ramp = 1.0 if self.warmup == 0 else min(1.0, (now - self.start) / self.warmup)
        if isinstance(self.weight, (int, float)):
            weight = self.weight
            if self.final_weight is not None and self.stop is not None:
                gone = (now - self.start) / (self.stop - self.start)
                weight += (self.final_weight - weight) * gone
            return weight * ramp
        return ramp if any(self.weight) else 0.0


@dataclass(frozen=True)
class Recipe:
    """All pairs, and the unit their schedules are written in.

    Args:
        pairs: The lines.
        unit: ``"epoch"`` or ``"step"``; what ``start``, ``stop``, ``warmup`` and ``until`` count.
        stages: In the order they come; empty for one stage.
    """

    pairs: tuple[Pair, ...]
    unit: str = "epoch"
    stages: tuple[Stage, ...] = ()

    @classmethod
    def from_config(
        cls,
        pairs: Iterable[Mapping[str, Any] | Pair],
        unit: str = "epoch",
        stages: Sequence[Mapping[str, Any]] = (),
        *,
        may_be_empty: bool = False,
    ) -> Recipe:
        """Make a recipe from config data and check it whole.

        Args:
            pairs: The lines.
            unit: See the class.
            stages: Likewise, as mappings.
            may_be_empty: Whether something else than pairs is distilled.

        Raises:
            ConfigError: If anything in it cannot be meant.

        Example:
            >>> recipe = Recipe.from_config([dict(student="neck", loss="FeatureImitation")])
            >>> recipe.pairs[0].name, recipe.pairs[0].teacher
            ('feature_imitation', 'neck')
        """
        if unit not in ("epoch", "step"):
            raise ConfigError(f"unit={unit!r} of the recipe is neither 'epoch' nor 'step'.")
        pairs = list(pairs)
        if not pairs and not may_be_empty:
            raise ConfigError("The recipe has no pairs: nothing would be distilled.")
        made = tuple(_stage(stage) for stage in stages)
        names = [stage.name for stage in made]
        _check_stages(made)
        unique: list[Pair] = []
        for config in pairs:
            pair = config.completed() if isinstance(config, Pair) else Pair.from_config(config)
            if pair.stage is not None and pair.stage not in names:
                raise ConfigError(
                    f"Pair {pair.name!r} is for stage {pair.stage!r}, but the stages are {names}."
                )
            taken = {p.name for p in unique}
            name, count = pair.name, 2
            while name in taken:
                name, count = f"{pair.name}_{count}", count + 1
            unique.append(replace(pair, name=name))
        return cls(tuple(unique), unit, made)

    @property
    def outputs(self) -> set[str]:
        """Names of the outputs that some pair compares."""
        sides = [side for p in self.pairs if p.is_output for side in (p.student, p.teacher)]
        return {output_name(tap) for side in sides for tap in members(side)}

    @property
    def regions(self) -> set[str]:
        """Names of the regions that some pair is limited to."""
        return {p.region for p in self.pairs if p.region is not None}

    def by_teacher(self, teachers: Iterable[str]) -> dict[str, list[Pair]]:
        """The pairs that each teacher serves.

        Args:
            teachers: Names of the teachers; the first serves the pairs that name none.

        Raises:
            ConfigError: If a pair names a teacher that is not there.
        """
        found: dict[str, list[Pair]] = {name: [] for name in teachers}
        for pair in self.pairs:
            name = pair.of or next(iter(found))
            if name not in found:
                raise ConfigError(
                    f"Pair {pair.name!r} is of teacher {name!r}, but the teachers are "
                    f"{list(found)}.{did_you_mean(name, found)}"
                )
            found[name].append(pair)
        return found

    def now(self, progress: Progress) -> float:
        """Progress in the recipe's unit."""
        return progress.epoch if self.unit == "epoch" else float(progress.step)

    def stage(self, progress: Progress) -> Stage | None:
        """The stage that training is in; the last one holds on after its end."""
        now = self.now(progress)
        for stage in self.stages:
            ends = [stage.until, progress.ended.get(stage.name)]
            if all(end is None or now < end for end in ends):
                return stage
        return self.stages[-1] if self.stages else None

    def factors(self, progress: Progress) -> list[float]:
        """The weight of every pair at this point."""
        stage = self.stage(progress)
        name = stage.name if stage else None
        return [pair.factor(self.now(progress), name) for pair in self.pairs]

    def task_weight(self, progress: Progress) -> float:
        """The weight of the student's own losses at this point."""
        stage = self.stage(progress)
        return stage.task_weight if stage else 1.0


def resolve_loss(name: str) -> type[nn.Module]:
    """Find a loss class by its name in ``core.losses``, or by ``"package.module:Class"``.

    Raises:
        ConfigError: If there is none; offers the nearest names.

    Example:
        >>> resolve_loss("KLDivergence").__name__
        'KLDivergence'
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"Loss {name!r} cannot be imported: {error}.") from error
        if not (inspect.isclass(found) and issubclass(found, nn.Module)):
            raise ConfigError(f"Loss {name!r} is no class derived from torch.nn.Module: {found!r}.")
        return found
    classes = [n for n in _losses.__all__ if _compares(getattr(_losses, n))]
    if name not in classes:
        raise ConfigError(
            f"There is no loss {name!r}.{did_you_mean(name, classes)} Known: {', '.join(classes)}. "
            "One of your own is written 'package.module:Class'."
        )
    return getattr(_losses, name)


def _compares(thing: object) -> bool:
    """Whether it is a module for (student, teacher); methods bring other networks along too."""
    if not (inspect.isclass(thing) and issubclass(thing, nn.Module)):
        return False
    return list(inspect.signature(thing.forward).parameters)[1:3] == ["student", "teacher"]


def _stage(config: Mapping[str, Any]) -> Stage:
    known = [f.name for f in fields(Stage)]
    if not isinstance(config, Mapping):
        raise ConfigError(f"A stage is dict(name=..., until=...), not {config!r}.")
    for key in config:
        if key not in known:
            raise ConfigError(f"A stage has no {key!r}.{did_you_mean(key, known)}")
    if "name" not in config:
        raise ConfigError(f"Stage {dict(config)} has no 'name'.")
    return Stage(**config)


def _check_stages(stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two stages have one name: {names}.")
    for stage in stages:
        _check_number(f"task_weight of stage {stage.name!r}", stage.task_weight)
        if stage.until is not None:
            _check_number(f"until of stage {stage.name!r}", stage.until)
        for key in ("train", "freeze"):
            globs = getattr(stage, key)
            listed = isinstance(globs, (list, tuple)) and all(isinstance(g, str) for g in globs)
            if globs is not None and not listed:
                raise ConfigError(
                    f"{key} of stage {stage.name!r} is {globs!r}; expected a list of module names."
                )
        if stage.plateau is not None:
            Plateau.from_config(stage.name, stage.plateau)
    if stages and stages[-1].plateau is not None:
        raise ConfigError(
            f"Stage {stages[-1].name!r} is the last one and has a plateau, after which nothing "
            "would come. Leave it out there."
        )
    ends = [stage.until for stage in stages]
    last: float = 0.0
    for index, end in enumerate(ends):
        if end is None and index == len(ends) - 1:
            continue
        if end is None or end <= last:
            raise ConfigError(
                f"Stages must end one after another ('until'), but they end at {ends}."
            )
        last = end


def _check_number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{what} is {value!r}, which is no number.")
    if not 0 <= value < math.inf:
        raise ConfigError(f"{what} is {value!r}; expected a finite number >= 0.")


def _check_pair(pair: Pair) -> None:
    for key in ("student", "teacher", "name"):
        if not isinstance(getattr(pair, key), str):
            raise ConfigError(f"{key}={getattr(pair, key)!r} of a pair is no string.")
    ours, theirs = pair.student, pair.teacher
    taps = [*members(ours), *members(theirs)]
    if len({tap.startswith(OUTPUTS) for tap in taps}) > 1:
        raise ConfigError(
            f"Pair matches the student's {ours!r} with the teacher's {theirs!r}; an output can "
            "only be matched with an output."
        )
    if len(members(ours)) != len(members(theirs)):
        raise ConfigError(
            f"Pair joins {len(members(ours))} of the student ({ours!r}) and "
            f"{len(members(theirs))} of the teacher ({theirs!r}); expected as many."
        )
    for tap in taps:
        if tap.startswith(OUTPUTS) and Tap.parse(tap).side == "input":
            raise ConfigError(f"Output {tap!r} of a pair has no input to read.")
        Tap.parse(tap)
    if pair.adapter not in ADAPTERS:
        raise ConfigError(
            f"adapter={pair.adapter!r} of pair {ours!r} is not one of {ADAPTERS}."
            f"{did_you_mean(str(pair.adapter), ADAPTERS)}"
        )
    if len(members(ours)) > 1 and pair.adapter not in ("auto", "none"):
        raise ConfigError(
            f"Pair {ours!r} has adapter={pair.adapter!r}, but joined tensors are compared as they "
            "are; adapters go with a single one."
        )
    weights = pair.weight if isinstance(pair.weight, tuple) else (pair.weight,)
    if not weights:
        raise ConfigError(
            f"weight of pair {ours!r} is an empty list; expected one for each tensor."
        )
    for value in weights:
        _check_number(f"weight of pair {ours!r}", value)
    for key in ("start", "warmup", "stop", "avg_factor", "final_weight"):
        value = getattr(pair, key)
        if not (key in ("stop", "avg_factor", "final_weight") and value is None):
            _check_number(f"{key} of pair {ours!r}", value)
    if pair.final_weight is not None and (pair.stop is None or isinstance(pair.weight, tuple)):
        raise ConfigError(
            f"Pair {ours!r} has final_weight={pair.final_weight}, which is reached at its 'stop' "
            "from one weight; give it a stop, and a number as its weight."
        )
    if pair.avg_factor == 0:
        raise ConfigError(f"avg_factor of pair {ours!r} is 0; expected a number to divide by.")
    if pair.stop is not None and pair.stop <= pair.start:
        raise ConfigError(
            f"Pair {ours!r} would never be active: it stops at {pair.stop}, it starts at "
            f"{pair.start}."
        )
    # Names become keys of modules, of a log and of checkpoints.
    if pair.name and (not re.fullmatch(r"[\w-]+", pair.name) or hasattr(nn.ModuleDict, pair.name)):
        raise ConfigError(
            f"name={pair.name!r} of pair {ours!r} cannot be used. Take letters, digits, '_' and "
            "'-', and no name of a method of torch.nn.ModuleDict."
        )
    _check_loss(pair)


def _check_loss(pair: Pair) -> None:
    if isinstance(pair.loss, nn.Module):
        if pair.options:
            raise ConfigError(
                f"Pair {pair.student!r} has the keys {list(pair.options)}, which are no keys of a "
                "pair, and its loss is a module made already."
                f"{did_you_mean(next(iter(pair.options)), _PAIR_KEYS)}"
            )
        return
    if not isinstance(pair.loss, str):
        raise ConfigError(f"loss={pair.loss!r} is neither a name nor a module.")
    # nn.Module's own constructor names no argument, and takes none.
    loss = resolve_loss(pair.loss)
    bare = loss.__init__ is nn.Module.__init__
    parameters = {} if bare else inspect.signature(loss).parameters
    takes = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    for key in pair.options:
        if key not in takes and not takes_any:
            raise ConfigError(
                f"{key!r} is neither a key of a pair nor an argument of {pair.loss}."
                f"{did_you_mean(key, [*takes, *_PAIR_KEYS])} {pair.loss} takes: "
                f"{', '.join(takes) or 'nothing'}."
            )
    try:
        pair.build_loss()  # bad values are told here, before training
    except TypeError as error:
        raise ConfigError(
            f"{pair.loss} cannot be made from {dict(pair.options)}: {error}."
        ) from error


_PAIR_KEYS = [f.name for f in fields(Pair) if f.name != "options"]


def _default_name(pair: Pair) -> str:
    base = pair.loss.split(":")[-1] if isinstance(pair.loss, str) else type(pair.loss).__name__
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", base).lower()
    # mmengine adds up whatever has "loss" in its name, so no name may say it by accident.
    snake = snake.replace("_loss", "").replace("loss", "").strip("_") or "term"
    if hasattr(nn.ModuleDict, snake):
        snake = f"{snake}_term"
    return f"{snake}_{pair.region}" if pair.region else snake
