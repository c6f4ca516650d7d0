"""Student + teachers + recipe -> named losses."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import describe, make_adapter
from .errors import (
    ConfigError,
    DistillError,
    NonFiniteLossError,
    ShapeError,
    TapError,
    TeacherError,
    did_you_mean,
)
from .losses.top_k_kl_div import SparseLogits
from .modes import evaluating
from .recipe import OUTPUTS, Pair, Progress, Recipe, members, output_name
from .taps import Captured, Tap, Taps
from .teacher import FrozenTeacher

__all__ = ["Context", "Distiller", "Region", "Term", "check_finite", "default_outputs"]

logger = logging.getLogger(__name__)

Outputs = Mapping[str, Tensor | SparseLogits | Sequence[Tensor]]


@dataclass(frozen=True)
class Region:
    """Which positions are compared, and how much each counts.

    Args:
        weight: One non-negative number a position; 0 leaves it out. ``(P,)`` for outputs
            ``(P, ...)``; ``(B, T)`` for sequences of tokens, in any form their loss knows or laid
            out flat ``(B * T, K)``; or a map ``(B, H, W)`` for outputs and features
            ``(B, C, h, w)``, which is read at the nearest place where its size is another.
            ``None`` where the region is one of features only.
        total: What the weighted sum is divided by; the sum of the weights by default. In
            data-parallel training, the mean of that sum over processes.
        average: Takes the mean over processes of a number; for maps, whose sum is known only at
            the size of what they are used on.
        at: Makes the map ``(B, h, w)`` for features of that height and width, which are then not
            weighed by ``weight``: the region of each level of a pyramid is its own.
    """

    weight: Tensor | None = None
    total: Tensor | None = None
    average: Callable[[Tensor], Tensor] | None = None
    at: Callable[[tuple[int, int]], Tensor] | None = None


@dataclass
class Context:
    """What a task computes beside the taps, for one batch.

    Args:
        student: Outputs of the student by name; positions on the first axis, or maps
            ``(B, C, H, W)``. Where there is one a layer, a sequence of them.
        teachers: Outputs of each teacher by name, on the same positions. Logits of which only some
            classes were kept are a :class:`.losses.SparseLogits`.
        regions: Regions by name.
        targets: Ground truth by output name, for losses that want it; of maps ``(B, H, W)``. Losses
            of features name theirs (``target_name = "boxes"``).
        images: What the student saw, for losses that want it.
        match: Brings a teacher's output (second) to the size of a student's (first); without it,
            two sizes are an error.
    """

    student: Outputs = field(default_factory=dict)
    teachers: Mapping[str, Outputs] = field(default_factory=dict)
    regions: Mapping[str, Region] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    match: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Term:
    """One loss term: as the loss gives it, and as it enters the sum."""

    raw: Tensor
    weighted: Tensor


def default_outputs(output: Any) -> dict[str, Tensor | SparseLogits]:
    """Name the outputs of a plain model: its logits, or ``.logits`` of a model output.

    Example:
        >>> list(default_outputs(torch.zeros(2, 3)))
        ['logits']
    """
    if isinstance(output, (Tensor, SparseLogits)):
        return {"logits": output}
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None:
        logits = getattr(output, "logits", None)
    return {"logits": logits} if isinstance(logits, (Tensor, SparseLogits)) else {}


class Distiller(nn.Module):
    """Match a student with its teachers, pair by pair.

    Its ``state_dict`` is what a checkpoint keeps beside the student. Its parameters are those of
    adapters and losses: :meth:`partner_parameters` are trained with the student, so add them to its
    optimizer. :meth:`critic_parameters`, where a loss plays against the student (as
    :class:`~.losses.Holistic` does), have an optimizer of their own, which steps after the
    student's on :meth:`critic_losses`.

    Args:
        student: The network in training. Held by reference, not as a submodule.
        teacher: One network, or several by name. A bare module is frozen here.
        recipe: What is matched; a :class:`Recipe` or a list of config lines.
        outputs: Names the outputs of a plain forward, for pairs on ``outputs.NAME``.
        reads: Further taps on the student, which a task's adapter makes its outputs from.
        default_region: Region of the outputs' pairs that name none, where their loss weighs
            positions; one for all, or by the output's name.
        adapted: Outputs that go through adapters, as taps do: features, which may differ in width.
        teacher_reads: Further taps on each teacher, by its name.
        whole: Teachers whose outputs are wanted beyond the pairs: their forward never ends early.

    Raises:
        TapError: If a tap names no module.
        ConfigError: If a pair names an unknown teacher, or asks of its loss what it cannot do.
        TeacherError: If a teacher is the student, or shares parameters that train with it.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distiller = Distiller(student, teacher, [
        ...     dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9)])
        >>> output, terms = distiller(torch.ones(2, 4))
        >>> [(name, term.weighted.requires_grad) for name, term in terms.items()]
        [('kl_divergence', True)]
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | FrozenTeacher | Mapping[str, nn.Module | FrozenTeacher],
        recipe: Recipe | list[dict[str, Any]],
        outputs: Callable[[Any], Outputs] = default_outputs,
        reads: Iterable[str] = (),
        default_region: str | Mapping[str, str] | None = None,
        adapted: Iterable[str] = (),
        teacher_reads: Mapping[str, Sequence[str]] | None = None,
        whole: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_config(recipe)
        teachers = teacher if isinstance(teacher, Mapping) else {"teacher": teacher}
        if not teachers:
            raise ConfigError("There is no teacher: the mapping of teachers is empty.")
        for name, candidate in teachers.items():
            _check_apart(student, candidate, name)
        self.teachers: dict[str, FrozenTeacher] = {
            name: t if isinstance(t, FrozenTeacher) else FrozenTeacher(t)
            for name, t in teachers.items()
        }
        self._outputs = outputs
        # In a plain container, so that the student is not registered twice.
        self._student = (student,)
        tapped = [p for p in self.recipe.pairs if not p.is_output]
        self._adapted = frozenset(adapted)
        self._taps = Taps(student, [*(tap for p in tapped for tap in members(p.student)), *reads])
        # Names only: taps hold their model, and a copy of this module (EMA) must not copy that.
        self._teacher_taps: dict[str, list[str]] = {name: [] for name in self.teachers}
        self._served = self.recipe.by_teacher(self.teachers)
        self._teacher_of = {p.name: n for n, pairs in self._served.items() for p in pairs}
        for name, pairs in self._served.items():
            own = [tap for p in pairs if not p.is_output for tap in members(p.teacher)]
            self._teacher_taps[name] = [*own, *(teacher_reads or {}).get(name, ())]
            self.teachers[name].taps(self._teacher_taps[name])
        self._whole = frozenset(whole)
        self._stop_after: dict[str, dict[tuple[str, str], int] | None] = {}
        self.adapters = nn.ModuleDict()
        self.losses = nn.ModuleDict({p.name: p.build_loss() for p in self.recipe.pairs})
        # Of losses that learn something of each tensor: those of the second and later ones.
        self.further_losses = nn.ModuleDict()
        self._forward_args = {
            name: set(inspect.signature(loss.forward).parameters)
            for name, loss in self.losses.items()
        }
        for pair in self.recipe.pairs:
            self._check_arguments(pair)
        self._region_of = {
            p.name: p.region or self._default_region(p, default_region) for p in self.recipe.pairs
        }
        # What the adversarial pairs compared in the last batch, without a graph.
        self._played: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {}
        # For losses that do something else in each stage.
        self._stage: str | None = None
        self.is_set_up = False

    # -- what it needs -------------------------------------------------------------------------

    @property
    def student(self) -> nn.Module:
        """The network in training."""
        return self._student[0]

    def pairs_of(self, teacher: str) -> list[Pair]:
        """The pairs that one teacher serves."""
        return self._served[teacher]

    @property
    def regions(self) -> set[str]:
        """The regions that some pair is limited to, by its line or by default."""
        return {name for name in self._region_of.values() if name is not None}

    def region_of(self, pair: Pair) -> str | None:
        """The region a pair is limited to, or averaged over by default."""
        return self._region_of[pair.name]

    def _default_region(self, pair: Pair, default: str | Mapping[str, str] | None) -> str | None:
        if not pair.is_output or not self._weighs(pair):
            return None
        if default is None or isinstance(default, str):
            return default
        return default.get(output_name(members(pair.student)[0]))

    def _adapts(self, pair: Pair) -> bool:
        """Whether the two sides go through an adapter before they are compared."""
        if len(members(pair.student)) > 1 or getattr(self.losses[pair.name], "as_is", False):
            return False
        return not pair.is_output or output_name(pair.student) in self._adapted

    def _weighs(self, pair: Pair) -> bool:
        """Whether the pair's loss takes a weight a position."""
        per_position = getattr(self.losses[pair.name], "per_position", True)
        return per_position and {"weight", "total"} <= self._forward_args[pair.name]

    def _check_arguments(self, pair: Pair) -> None:
        """Tell before training what the pair's loss cannot be given, or would not use."""
        takes, loss = self._forward_args[pair.name], type(self.losses[pair.name]).__name__
        if pair.region is not None and not self._weighs(pair):
            raise ConfigError(
                f"Pair {pair.name!r} is limited to region {pair.region!r}, but {loss} takes no "
                "'weight' per position and 'total'."
            )
        if pair.avg_factor is not None and not self._weighs(pair):
            raise ConfigError(
                f"Pair {pair.name!r} has avg_factor={pair.avg_factor}, but {loss} takes no "
                "'weight' per position and 'total'."
            )
        named = hasattr(self.losses[pair.name], "target_name")
        if "target" in takes and not pair.is_output and not named:
            raise ConfigError(
                f"Pair {pair.name!r}: {loss} compares with the ground truth, which only outputs "
                f"('{OUTPUTS}NAME') have; {pair.student!r} is a tap."
            )
        if not self._adapts(pair) and pair.adapter not in ("auto", "none"):
            if not pair.is_output:
                raise ConfigError(
                    f"Pair {pair.student!r} has adapter={pair.adapter!r}, but {loss} compares what "
                    "it is given as it is. Leave it out."
                )
            raise ConfigError(
                f"Pair {pair.student!r} has adapter={pair.adapter!r}, but outputs are compared as "
                f"they are; adapters go with taps{self._adapted_listing()}."
            )
        if self._is_adversarial(pair) and not pair.is_output:
            raise ConfigError(
                f"Pair {pair.name!r}: {loss} plays on outputs ('{OUTPUTS}NAME'); {pair.student!r} "
                "is a tap."
            )

    def _adapted_listing(self) -> str:
        names = ", ".join(f"{OUTPUTS}{name}" for name in sorted(self._adapted))
        return f" and with {names}" if names else ""

    def _is_adversarial(self, pair: Pair) -> bool:
        return getattr(self.losses[pair.name], "adversarial", False)

    def partner_parameters(self) -> list[nn.Parameter]:
        """What is trained with the student: the adapters, and what losses learn beside it."""
        critics = {id(p) for p in self.critic_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in critics]

    def critic_parameters(self) -> list[nn.Parameter]:
        """What is trained against the student, by an optimizer of its own."""
        pairs = filter(self._is_adversarial, self.recipe.pairs)
        return [p for pair in pairs for p in self.losses[pair.name].parameters()]

    # -- one batch -----------------------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[Captured]:
        """Record the student's taps while the block runs."""
        with self._taps.capture() as captured:
            yield captured

    def ask(
        self, name: str, *args: Any, forward: Callable[..., Any] | None = None, **kwargs: Any
    ) -> tuple[Captured, Any]:
        """Run one teacher with its taps on.

        Where no pair compares the teacher's outputs, its forward ends after the last tap.

        Returns:
            What the taps saw, and the output (``None`` after an early exit).
        """
        return self.teachers[name].observe(
            self._teacher_taps[name],
            *args,
            forward=forward,
            stop_after=self._stop_after.get(name),
            **kwargs,
        )

    def forward(
        self, *args: Any, progress: Progress | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Term]]:
        """Run the student and every teacher on the same inputs.

        Runs :meth:`setup` on them first where that has not been done.

        Returns:
            The student's output and the terms by name.
        """
        if not self.is_set_up:
            self.setup(self.student, lambda name: self.teachers[name].network, *args, **kwargs)
            if any(True for _ in self.parameters()):
                logger.warning(
                    "Adapters or critics were made in the first forward. An optimizer made "
                    "before it does not train them: call Distiller.setup before making it."
                )
        with self.watch() as seen:
            output = self.student(*args, **kwargs)
        asked = {name: self.ask(name, *args, **kwargs) for name in self.teachers}
        context = Context(
            student=self._outputs(output) if self.recipe.outputs else {},
            teachers={n: self._outputs(out) for n, (_, out) in asked.items() if out is not None},
            images=args[0] if args and isinstance(args[0], Tensor) else None,
        )
        taught = {name: captured for name, (captured, _) in asked.items()}
        return output, self.terms(seen, taught, context, progress or Progress())

    def terms(
        self,
        student: Captured,
        teachers: Mapping[str, Captured],
        context: Context,
        progress: Progress,
    ) -> dict[str, Term]:
        """Compute every term of the recipe for one batch.

        A pair over several tensors (pyramid levels, calls of a shared head) is the mean over
        them. A pair that is off at this point gives 0, but still touches its adapters' parameters
        with a zero gradient, so that data-parallel training needs no search for unused ones.

        Raises:
            TapError: If a tapped module was not called, or no gradient reaches a student's tap.
            ShapeError: If two tensors do not match.
        """
        found: dict[str, Term] = {}
        self._played = {}
        stage = self.recipe.stage(progress)
        self._stage = None if stage is None else stage.name
        for pair, factor in zip(self.recipe.pairs, self.recipe.factors(progress), strict=True):
            if factor == 0.0:
                touch = [p.sum() * 0.0 for p in self.parameters_of(pair)]
                zero = torch.stack(touch).sum() if touch else torch.zeros((), device=self._device)
                found[pair.name] = Term(zero.detach(), zero)
                continue
            values = torch.stack(
                self._compare_outputs(pair, context)
                if pair.is_output
                else self._compare_taps(
                    pair, student, teachers[self._teacher_of[pair.name]], context
                )
            )
            raw = weighted = values.mean()
            if pair.shares is not None:
                _check_shares(pair, len(values))
                weighted = (values * values.new_tensor(pair.shares)).mean()
            found[pair.name] = Term(raw.detach(), weighted * factor)
        return found

    def _compare_outputs(self, pair: Pair, context: Context) -> list[Tensor]:
        taught = context.teachers.get(self._teacher_of[pair.name], {})
        tensors = self._match(
            pair,
            [_output(context.student, spec, "student output") for spec in members(pair.student)],
            [_output(taught, spec, "teacher output") for spec in members(pair.teacher)],
        )
        adapters = self._adapters_of(pair, len(tensors)) if self._adapts(pair) else None
        values = []
        for index, (student, teacher) in enumerate(tensors):
            if adapters is not None:
                student, teacher = adapters[index](student, teacher)
            values.append(self._compare_output(pair, index, student, teacher, context))
        return values

    def _compare_output(
        self, pair: Pair, index: int, student: Any, teacher: Any, context: Context
    ) -> Tensor:
        free = getattr(self.losses[pair.name], "any_channels", False)
        if _known_in_part(teacher):
            self._check_sparse(pair, student, teacher)
        elif isinstance(student, Tensor) and not free:
            if student.shape != teacher.shape and context.match is not None:
                teacher = context.match(student, teacher)
            if student.shape != teacher.shape:
                raise ShapeError(
                    f"Pair {pair.name!r}: student's {pair.student} is {tuple(student.shape)}, "
                    f"teacher's {pair.teacher} is {tuple(teacher.shape)}."
                )
        takes, extra = self._forward_args[pair.name], {}
        if "target" in takes:
            target = self._target(pair, context)
            is_map = target.ndim == 3 and student.ndim == 4
            extra["target"] = _nearest(target, student.shape[2:]) if is_map else target
        region = self._region(pair, context)
        if region is not None:
            if region.weight is None:
                raise ConfigError(
                    f"Pair {pair.name!r}: region {self._region_of[pair.name]!r} is one of "
                    f"features; {pair.student!r} is an output."
                )
            weight = _laid_out(region.weight, student)
            if weight.ndim == 3:
                extra.update(self._on_map(pair, region, student))
            elif weight.ndim == 2 and _is_sequence(student):
                extra.update(weight=weight, total=region.total)
            elif weight.shape != student.shape[:1]:
                raise ShapeError(
                    f"Pair {pair.name!r}: region {self._region_of[pair.name]!r} has weights of "
                    f"shape {tuple(weight.shape)}, expected one for each of the "
                    f"{len(student)} positions of {pair.student} {tuple(student.shape)}."
                )
            else:
                total = weight.sum() if region.total is None else region.total
                # Only the positions that count go through the loss: a few hundred of many thousand.
                chosen = weight.nonzero().squeeze(1)
                student, teacher = student[chosen], _rows(teacher, chosen)
                extra = {key: value[chosen] for key, value in extra.items()}
                extra.update(weight=weight[chosen], total=total)
        extra.update(self._told(pair))
        if "image" in takes:
            extra["image"] = context.images
        if self._is_adversarial(pair):
            self._played[pair.name] = (student.detach(), teacher.detach(), extra)
        return self._loss_of(pair, index)(student, teacher, **extra)

    def _check_sparse(self, pair: Pair, student: Tensor, teacher: SparseLogits) -> None:
        """The loss itself compares the axes; here they are rows of the same positions."""
        loss = self.losses[pair.name]
        if not getattr(loss, "takes_sparse", False):
            raise ConfigError(
                f"Pair {pair.name!r}: only some classes of the teacher's {pair.teacher} are known, "
                f"and {type(loss).__name__} needs all. Use TopKKLDivergence, or a cache that keeps "
                "all classes."
            )
        if len(student) != len(teacher.values):
            raise ShapeError(
                f"Pair {pair.name!r}: student's {pair.student} is {tuple(student.shape)}, of the "
                f"teacher's {pair.teacher} some classes are known, {tuple(teacher.values.shape)}."
            )

    def _told(self, pair: Pair) -> dict[str, Any]:
        """What a loss is told whatever it compares: its divisor, the stage."""
        told: dict[str, Any] = {}
        if pair.avg_factor is not None:
            told["total"] = pair.avg_factor
        if "stage" in self._forward_args[pair.name]:
            told["stage"] = self._stage
        return told

    def _target(self, pair: Pair, context: Context) -> Tensor:
        name = getattr(self.losses[pair.name], "target_name", None) or output_name(pair.student)
        return _lookup(context.targets, name, "target")

    def _loss_of(self, pair: Pair, index: int) -> nn.Module:
        """The loss of a pair's tensor: a copy each, where it learns something of each."""
        if index == 0 or pair.name not in self.further_losses:
            return self.losses[pair.name]
        return list(self.further_losses[pair.name].children())[index - 1]

    def _region(self, pair: Pair, context: Context) -> Region | None:
        name = self._region_of[pair.name]
        return None if name is None else _lookup(context.regions, name, "region")

    def _on_map(self, pair: Pair, region: Region, student: Tensor) -> dict[str, Any]:
        """What a loss of maps is given of a region."""
        weight, total = region.weight, region.total
        if region.at is not None and student.ndim == 4:
            weight, total = region.at((student.shape[2], student.shape[3])), None
        if weight is None or student.ndim != 4 or weight.shape[:1] != student.shape[:1]:
            shape = "of each level" if weight is None else tuple(weight.shape)
            raise ShapeError(
                f"Pair {pair.name!r}: region {self._region_of[pair.name]!r} is a map {shape}, but "
                f"{pair.student!r} is {tuple(student.shape)}; expected (B, C, H, W)."
            )
        weight = _nearest(weight, student.shape[2:])
        if total is None and region.average is not None:
            total = region.average(weight.sum())
        return dict(weight=weight, total=total)

    def _compare_taps(
        self, pair: Pair, student: Captured, teacher: Captured, context: Context
    ) -> list[Tensor]:
        tensors = self._match_taps(pair, student, teacher)
        adapters = self._adapters_of(pair, len(tensors)) if self._adapts(pair) else None
        region, values = self._region(pair, context), []
        for index, (s, t) in enumerate(tensors):
            parts = s if isinstance(s, tuple) else (s,)
            if torch.is_grad_enabled() and not any(part.requires_grad for part in parts):
                raise TapError(
                    f"Pair {pair.name!r}: no gradient reaches the student's {pair.student!r} (a "
                    "frozen stage?), so the pair could teach nothing. Tap a layer that is trained."
                )
            if adapters is not None:
                s, t = adapters[index](s, t)
            # Of the size that is compared, which an adapter may have made of the student's.
            compared = s[0] if isinstance(s, tuple) else s
            extra = self._on_tap(pair, region, compared)
            if "target" in self._forward_args[pair.name]:
                extra["target"] = self._target(pair, context)
            extra.update(self._told(pair))
            values.append(self._loss_of(pair, index)(s, t, **extra))
        return values

    def _on_tap(self, pair: Pair, region: Region | None, student: Tensor) -> dict[str, Any]:
        """What a loss of tapped tensors is given of a region."""
        if region is None:
            return {}
        weight = None if region.weight is None else _laid_out(region.weight, student)
        # Features of single positions (regions of interest) are weighed as outputs are.
        if (
            weight is None
            or weight.ndim == 3
            or (region.at is not None and student.ndim == 4 and weight.shape != student.shape[:1])
        ):
            return self._on_map(pair, region, student)
        if weight.shape != student.shape[: weight.ndim]:
            raise ShapeError(
                f"Pair {pair.name!r}: region {self._region_of[pair.name]!r} has weights of shape "
                f"{tuple(weight.shape)}, but {pair.student!r} is {tuple(student.shape)}; "
                "its first axes must be the same."
            )
        if weight.ndim == 1 and student.ndim > 2:
            # Features of single positions are maps or sequences themselves: each place counts so.
            places = student.shape[2:] if student.ndim == 4 else student.shape[1:-1]
            total = weight.sum() if region.total is None else region.total
            wide = weight.view(-1, *(1 for _ in places)).expand(-1, *places)
            return dict(weight=wide, total=total * places.numel())
        return dict(weight=weight, total=region.total)

    def _adapters_of(self, pair: Pair, tensors: int) -> list[nn.Module]:
        """The adapters of a pair, one for each tensor."""
        if pair.name not in self.adapters:
            raise DistillError(
                f"Pair {pair.name!r} has no adapters yet. Call Distiller.setup with an example "
                "batch before training."
            )
        adapters = list(self.adapters[pair.name].children())
        if len(adapters) != tensors:
            raise ShapeError(
                f"Pair {pair.name!r}: {pair.student!r} gives {tensors} tensors, but gave "
                f"{len(adapters)} in Distiller.setup. Run setup on a batch like those of training."
            )
        return adapters

    def critic_losses(self) -> dict[str, dict[str, Tensor]]:
        """What the critics minimise, on the maps that :meth:`terms` compared last.

        Called after the student's step: its maps are used without their graph, so nothing of it
        reaches the student.

        Returns:
            For each adversarial pair that is active, by name: ``loss``, and figures beside it.
        """
        return {
            name: self.losses[name].critic_step_losses(student, teacher, **extra)  # type: ignore
            for name, (student, teacher, extra) in self._played.items()
        }

    def _match_taps(
        self, pair: Pair, student: Captured, teacher: Captured
    ) -> list[tuple[Any, Any]]:
        return self._match(
            pair,
            [student.tensors(spec) for spec in members(pair.student)],
            [teacher.tensors(spec) for spec in members(pair.teacher)],
        )

    def _match(
        self, pair: Pair, student: Sequence[list[Tensor]], teacher: Sequence[list[Tensor]]
    ) -> list[tuple[Any, Any]]:
        """Pair the tensors of both sides; a side of joined ones gives a tuple each."""
        for ours, theirs in zip(student, teacher, strict=True):
            if len(ours) != len(theirs):
                raise ShapeError(
                    f"Pair {pair.name!r}: the student's {pair.student!r} gives {len(ours)} "
                    f"tensors, the teacher's {pair.teacher!r} {len(theirs)}. Select matching ones, "
                    f"e.g. '{members(pair.student)[0]}[0:{min(len(ours), len(theirs))}]'."
                )
        if len({len(tensors) for tensors in student}) > 1:
            raise ShapeError(
                f"Pair {pair.name!r}: the parts of {pair.student!r} give "
                f"{[len(tensors) for tensors in student]} tensors; expected as many each."
            )
        if len(student) == 1:
            return list(zip(student[0], teacher[0], strict=True))
        return list(zip(zip(*student, strict=True), zip(*teacher, strict=True), strict=True))

    def parameters_of(self, pair: Pair) -> list[nn.Parameter]:
        """What is trained with the student for one pair's sake: its adapters, and its loss."""
        modules = [] if self._is_adversarial(pair) else [self.losses[pair.name]]
        for further in (self.further_losses, self.adapters):
            if pair.name in further:
                modules.append(further[pair.name])
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def still(self, pair: Pair, stage: str | None) -> list[nn.Parameter]:
        """What a pair's loss does not train in a stage, though the pair is on."""
        losses = [self.losses[pair.name]]
        if pair.name in self.further_losses:
            losses += self.further_losses[pair.name].children()
        found = []
        for loss in losses:
            if (still := getattr(loss, "still", None)) is not None:
                found += still(stage)
        return found

    # -- before the first step -----------------------------------------------------------------

    def setup(
        self,
        student_forward: Callable[..., Any],
        teacher_forward: Callable[[str], Callable[..., Any]],
        *args: Any,
        trial: tuple[tuple, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make adapters and critics from the shapes of one batch, before the optimizer is made.

        Runs the student in eval mode and without gradient, so it changes neither its weights nor
        its statistics nor the random state.

        Args:
            student_forward: Called with the inputs.
            teacher_forward: Gives, by a teacher's name, what to call with the inputs.
            *args: An example batch.
            trial: Arguments of a batch on which to measure how each teacher runs fastest; the
                example by default.
            **kwargs: Likewise.

        Raises:
            TapError: If a tapped module is not called.
            ShapeError: If no adapter can relate the two sides of a pair.
        """
        cpu = torch.random.get_rng_state()
        try:
            with torch.no_grad(), evaluating(self.student):
                seen, output = self._observe_stable(self._taps, student_forward, *args, **kwargs)
                self._prepare_critics(output, args)
                for name, teacher in self.teachers.items():
                    taps = teacher.taps(self._teacher_taps[name])
                    call = teacher_forward(name)
                    asked, answer = self._observe_stable(taps, teacher.run, call, *args, **kwargs)
                    # The rest of the forward is needed only where its output is compared.
                    pairs = self._served[name]
                    wanted = name in self._whole or any(p.is_output for p in pairs)
                    tapped_only = bool(pairs) and not wanted
                    self._stop_after[name] = asked.counts() if tapped_only else None
                    teacher.prepare(
                        partial(_asking, teacher, teacher_forward, name),
                        self._teacher_taps[name],
                        *args,
                        stop_after=self._stop_after[name],
                        trial=trial,
                        **kwargs,
                    )
                    for pair in pairs:
                        fits = hasattr(self.losses[pair.name], "fit")
                        if not (self._adapts(pair) or fits):
                            continue
                        examples = self._examples(pair, (seen, output), (asked, answer))
                        _check_shares(pair, len(examples))
                        if self._adapts(pair):
                            self._make_adapters(pair, examples)
                        if self._learns_each(pair):
                            first = self.losses[pair.name]
                            self.further_losses[pair.name] = nn.ModuleList(
                                copy.deepcopy(first) for _ in examples[1:]
                            )
                        self._fit_losses(pair, examples)
        finally:
            torch.random.set_rng_state(cpu)
        # Of the parameters' precision, not the tensors': those may come from an autocast.
        dtypes = (p.dtype for p in self.student.parameters() if p.dtype.is_floating_point)
        self.adapters.to(self._device, next(dtypes, None))
        for losses in (self.losses, self.further_losses):
            losses.to(self._device)
        self.is_set_up = True

    def _fit_losses(self, pair: Pair, examples: Sequence[tuple[Any, Any]]) -> None:
        """Let losses that learn something take their shapes from what they will compare."""
        for index, (student, teacher) in enumerate(examples):
            fit = getattr(self._loss_of(pair, index), "fit", None)
            if fit is None:
                continue
            if pair.name in self.adapters:
                student, teacher = list(self.adapters[pair.name].children())[index](
                    student, teacher
                )
            try:
                fit(student, teacher)
            except ShapeError as error:
                raise ShapeError(f"Pair {pair.name!r} ({pair.student!r}): {error}") from error

    def _learns_each(self, pair: Pair) -> bool:
        """Whether the pair's loss learns something of each tensor that it compares."""
        return getattr(self.losses[pair.name], "per_tensor", False)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.student.parameters()), torch.device("cpu"))

    @staticmethod
    def _observe_stable(
        taps: Taps, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Captured, Any]:
        with taps.capture() as captured:
            output = call(*args, **kwargs)
        if mutated := captured.mutated():
            logger.info(
                "Copied when read, because changed in place later: %s.",
                ", ".join(sorted(name for name, _ in mutated)),
            )
            taps.copied |= mutated
            with taps.capture() as captured:
                output = call(*args, **kwargs)
        return captured, output

    def _prepare_critics(self, output: Any, args: tuple) -> None:
        pairs = [p for p in self.recipe.pairs if self._is_adversarial(p)]
        found = self._outputs(output) if pairs else {}
        for pair in pairs:
            example = _lookup(found, output_name(pair.student), "student output")
            image = args[0] if args and isinstance(args[0], Tensor) else None
            self.losses[pair.name].prepare(example, image)  # type: ignore[operator]

    def _examples(
        self, pair: Pair, student: tuple[Captured, Any], teacher: tuple[Captured, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        """What a pair compares, of one batch: what the taps saw, or outputs."""
        if not pair.is_output:
            return self._match_taps(pair, student[0], teacher[0])
        return self._match(
            pair,
            [_output(self._outputs(student[1]), pair.student, "student output")],
            [_output(self._outputs(teacher[1]), pair.teacher, "teacher output")],
        )

    def _make_adapters(self, pair: Pair, examples: Sequence[tuple[Tensor, Tensor]]) -> None:
        made = nn.ModuleList()
        kind = pair.adapter
        if kind == "auto" and getattr(self.losses[pair.name], "any_channels", False):
            # The method compares what does not depend on the width: a projection would be trained
            # to please it.
            kind = "resize"
        for index, (s, t) in enumerate(examples):
            try:
                adapter = make_adapter(s, t, kind)
            except ShapeError as error:
                raise ShapeError(f"Pair {pair.name!r} ({pair.student!r}): {error}") from error
            made.append(adapter)
            logger.info("Pair %s[%d]: %s.", pair.name, index, describe(adapter, s, t))
        self.adapters[pair.name] = made


def _asking(
    teacher: FrozenTeacher, teacher_forward: Callable[[str], Callable[..., Any]], name: str
) -> Callable[..., Any]:
    """What asks a teacher now: where the network itself is called, what stands for it."""
    forward = teacher_forward(name)
    return teacher.network if forward is teacher.model else forward


def _check_shares(pair: Pair, tensors: int) -> None:
    if pair.shares is not None and len(pair.shares) != tensors:
        raise ShapeError(
            f"Pair {pair.name!r}: weight has {len(pair.shares)} numbers {list(pair.shares)}, but "
            f"{pair.student!r} gives {tensors} tensors; expected one each."
        )


def _known_in_part(values: Any) -> bool:
    """Whether these are logits of which only some classes were kept."""
    return isinstance(values, SparseLogits)


def _rows(values: Any, chosen: Tensor) -> Any:
    """Those rows of a tensor, or of each part of sparse logits."""
    if not isinstance(values, SparseLogits):
        return values[chosen]
    tail = None if values.tail is None else values.tail[chosen]
    return SparseLogits(values.values[chosen], values.indices[chosen], tail)


def _output(values: Outputs, spec: str, what: str) -> list[Any]:
    """The tensors that ``outputs.NAME[selection]`` stands for."""
    value = _lookup(values, output_name(spec), what)
    tap = Tap.parse(spec)
    if isinstance(value, (Tensor, SparseLogits)):
        if tap.select is not None:
            raise ConfigError(f"{what.capitalize()} {spec!r} is one tensor: nothing to select.")
        return [value]
    return tap.choose(list(value), spec)


def _is_sequence(student: Any) -> bool:
    return not isinstance(student, Tensor) or student.ndim > 2


def _laid_out(weight: Tensor, student: Any) -> Tensor:
    """Weights of tokens as flat as the tensor they are of."""
    if weight.ndim == 2 and isinstance(student, Tensor) and student.ndim == 2:
        return weight.flatten() if len(student) == weight.numel() else weight
    return weight


def _nearest(values: Tensor, size: Sequence[int]) -> Tensor:
    """Read a map ``(B, H, W)`` of any type at another size, each place at the nearest."""
    if values.shape[1:] == torch.Size(size):
        return values
    rows, columns = (
        ((torch.arange(n, device=values.device) + 0.5) * (old / n)).long()
        for n, old in zip(size, values.shape[1:], strict=True)
    )
    return values[:, rows[:, None], columns]


def _check_apart(student: nn.Module, teacher: nn.Module | FrozenTeacher, name: str) -> None:
    model = teacher.model if isinstance(teacher, FrozenTeacher) else teacher
    trained = {id(p) for p in student.parameters() if p.requires_grad}
    if model is student or any(id(p) in trained for p in model.parameters()):
        raise TeacherError(
            f"Teacher {name!r} has parameters of the student in training, which freezing the "
            "teacher would stop. Give it a copy: copy.deepcopy(student)."
        )


def _lookup(values: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in values:
        known = ", ".join(values) or "none"
        raise ConfigError(
            f"There is no {what} {name!r}.{did_you_mean(name, values)} Known here: {known}."
        )
    return values[name]


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Stop with the names of the terms that are NaN or infinite.

    Reads one flag from the device, not one a term.

    Args:
        losses: Scalar losses by name.
        step: The step they belong to, for the message.

    Raises:
        NonFiniteLossError: Names the terms, their values and the step.

    Example:
        >>> check_finite({"loss_cls": torch.tensor(1.0)}, 7)
        >>> check_finite({"loss_cls": torch.tensor(float("nan"))}, 7)
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.NonFiniteLossError: At step 7 not finite: loss_cls=nan. ...
    """
    if not losses:
        return
    values = torch.stack([value.detach().float().mean() for value in losses.values()])
    if bool(torch.isfinite(values).all()):
        return
    bad = [f"{n}={v:g}" for n, v in zip(losses, values.tolist(), strict=True) if v - v != 0]
    raise NonFiniteLossError(
        f"At step {step} not finite: {', '.join(bad)}. The last checkpoint is untouched. Lower the "
        "learning rate or that term's weight, clip gradients, or check the data of this batch."
    )
