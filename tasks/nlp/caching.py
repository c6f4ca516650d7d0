"""Filling the cache of a teacher's answers, before training or without it."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ...core.answers import AnswerLayout, Probe, SparseForm, sparse_forms
from ...core.cache import CacheSpec, Field, TeacherCache, stored_identity
from ...core.distiller import Outputs
from ...core.errors import CacheError, ConfigError, DistillError
from ...core.recipe import Pair, members, output_name
from ...core.taps import Captured, Tap, Taps, flatten_tensors
from ..common.amounts import size_text, time_text
from .outputs import ANSWERS
from .remember import CacheOptions, RememberedTeacher
from .survey import Survey, groups_of
from .text_ids import TextTable

if TYPE_CHECKING:
    from .distillation import Distillation
    from .trainer import DistillingTrainer

__all__ = ["Forecast", "ensure"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TOOL = "tools/cache_teacher.py CONFIG"
# What of a model's config says nothing about its answers.
_NO_MATTER = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "torch_dtype",
    "transformers_version",
)  # fmt: skip
# How far an answer may differ when its text is padded: rounding, but no convolution over padding.
_SLACK = {"fp32": 0.02, "half": 0.1}


@dataclass(frozen=True)
class Forecast:
    """What keeping a teacher's answers takes.

    Args:
        teacher: Its name.
        folder: Where they are.
        rows: Of the data set.
        texts: That differ from each other.
        bytes_total: Of all answers.
        shards: Files of the cache.
        missing: Those of them that are to be written.
        missing_bytes: What these take.
        seconds: How long asking takes on this process's share, about.
    """

    teacher: str
    folder: str
    rows: int
    texts: int
    bytes_total: int
    shards: int
    missing: int
    missing_bytes: int
    seconds: float

    def __str__(self) -> str:
        each = self.bytes_total / self.texts
        same = "" if self.texts == self.rows else f" (of {self.rows} rows)"
        return (
            f"{self.texts} texts{same}, {each:.0f} bytes each, {size_text(self.bytes_total)} in "
            f"all; {self.missing} of {self.shards} files to write, {size_text(self.missing_bytes)},"
            f" about {time_text(self.seconds)}"
        )


def _restricted(captured: Captured, taps: Taps) -> Captured:
    """The part of what was seen that some taps see."""
    calls = captured.by_module()
    return Captured.of(taps, {key: calls[key] for key in taps.keys if key[1] != "weight"})


def ensure(
    trainer: DistillingTrainer, *, build: bool | None = None, dry_run: bool = False
) -> list[Forecast]:
    """See that every answer that training needs is there, and use them from then on.

    Args:
        trainer: With a distillation that has a cache.
        build: Whether what is missing is written; by default as the options say.
        dry_run: Only say what it takes: nothing is written, and teachers are asked as before.

    Returns:
        For each teacher, what was missing.

    Raises:
        CacheError: If the data, the collator or a pair do not go with a cache, or the folder holds
            something else, or something is missing and not to be written.
    """
    distillation = trainer.distillation
    options = distillation.cache
    if options is None:
        raise ConfigError("There is no cache to fill; give one: distill.cache, or cache=FOLDER.")
    distillation.remembered = {}
    with _random_state_kept(trainer.args.device):
        work = _Work(trainer, distillation, options)
        build = options.build if build is None else build
        forecasts = []
        for name in work.names:
            found, forecast = work.open(name, dry_run=dry_run, build=build)
            forecasts.append(forecast)
            if found is not None:
                distillation.remembered[name] = found
    return forecasts


class _Work:
    """The caches of one trainer's teachers."""

    def __init__(
        self, trainer: DistillingTrainer, distillation: Distillation, options: CacheOptions
    ) -> None:
        self.trainer, self.plan, self.options = trainer, distillation, options
        self.names = [name for name in distillation.distiller.teachers if self._asked(name)]
        self.world = trainer.accelerator.num_processes
        self.rank = trainer.accelerator.process_index
        self.texts = Survey(trainer, self.names)

    def _asked(self, name: str) -> bool:
        """Whether a pair compares something that only asking the teacher gives."""
        taps = self.plan.pair_taps(name)
        outputs = any(pair.is_output for pair in self.plan.distiller.pairs_of(name))
        return outputs or any(side != "weight" for _, side in taps.keys)

    # -- one teacher ------------------------------------------------------------------------------

    def ask(self, name: str, inputs: Mapping[str, Any]) -> tuple[Captured, Outputs]:
        """Ask as training does, and keep what pairs compare."""
        with self.trainer.accelerator.autocast():
            captured, outputs = self.plan.ask(name, inputs)
        return _restricted(captured, self.plan.pair_taps(name)), self._kept(name, outputs)

    def _kept(self, name: str, outputs: Outputs) -> dict[str, Any]:
        wanted, kept = self._wanted(name), {}
        for key, value in outputs.items():
            if isinstance(value, Tensor):
                kept[key] = value
            else:
                chosen = _chosen(wanted[key], len(value))
                kept[key] = [v if i in chosen else None for i, v in enumerate(value)]
        return kept

    def _wanted(self, name: str) -> dict[str, list[Tap]]:
        """Of each output the selections that pairs make."""
        wanted: dict[str, list[Tap]] = {}
        for pair in self.plan.distiller.pairs_of(name):
            for spec in members(pair.teacher) if pair.is_output else ():
                wanted.setdefault(output_name(spec), []).append(Tap.parse(spec))
        return wanted

    def open(
        self, name: str, *, dry_run: bool, build: bool
    ) -> tuple[RememberedTeacher | None, Forecast]:
        """Make the cache of one teacher complete."""
        stored = stored_identity(self.options.folder(name))
        teacher = self.plan.distiller.teachers[name]
        # What was measured to be fastest may differ from process to process, and from run to run.
        measured = self._together(lambda: teacher.runs_as)
        teacher.adopt(stored.get("runs_as") or measured[0])
        layout, seconds = self._learn(name)
        table = self._table(name)
        spec = self._spec(name, layout, table)
        if not stored and (dry_run or not build):  # where nothing is to be written
            if not dry_run:
                raise self._lacks(name, spec.shards, spec)
            return None, self._forecast(name, spec, table, list(range(spec.shards)), seconds)
        opened: list[TeacherCache] = []
        self._together(lambda: opened.append(self._cache(name, spec, table, save=not dry_run)))
        (cache,) = opened
        missing = self._missing(cache, self._needed(spec, table, name))
        forecast = self._forecast(name, spec, table, missing, seconds)
        if dry_run:
            return None, forecast
        if missing and not build:
            raise self._lacks(name, len(missing), spec)
        if missing:
            self._together(lambda: self._check_room(cache.folder, forecast))
            logger.info("Teacher %r is remembered in %s: %s.", name, cache.folder, forecast)
            share = missing[self.rank :: self.world]
            self._together(lambda: self._write(name, layout, table, cache, share))
        else:
            logger.info("Teacher %r is remembered already, in %s.", name, cache.folder)
        reader, taps = self.plan.readers[name], self.plan.pair_taps(name)
        return RememberedTeacher(reader, taps, layout, table, cache), forecast

    def _lacks(self, name: str, missing: int, spec: CacheSpec) -> CacheError:
        return CacheError(
            f"Cache {str(self.options.folder(name))!r} lacks {missing} of {spec.shards} files, and "
            f"cache.build is off. Write them: {_TOOL}"
        )

    def _learn(self, name: str) -> tuple[AnswerLayout, float]:
        """How answers are taken apart, and how long one batch takes."""
        lengths = self.texts.lengths[name]
        longest, shortest = int(lengths.argmax()), int(lengths.argmin())
        rows = [longest, shortest, *range(min(len(lengths), self.texts.size) - 2)]
        inputs = self._inputs(name, rows)
        length = _length(inputs)
        probes = []
        # Fewer and longer, more and shorter: which axis follows which is plain.
        for samples, cut in ((2, length), (3, max(1, length - 1))):
            captured, outputs = self.ask(name, _part(inputs, samples, cut))
            own = None if length == 1 else cut
            probes.append(Probe(captured, outputs, samples, own))
        self._check_pairs(name, probes)
        layout = AnswerLayout.learn(probes, dtype=self.options.dtype, sparse=self._sparse(name))
        whole = AnswerLayout.learn(probes, dtype="fp32")
        self._check_padding(name, whole, [longest, shortest])
        start = time.perf_counter()
        _finished(self.ask(name, inputs))
        return layout, time.perf_counter() - start

    def _inputs(self, name: str, rows: list[int]) -> dict[str, Any]:
        return self._given(name, next(self.texts.batches([rows], workers=0)), rows)

    def _given(self, name: str, batch: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
        """What a teacher is given of a batch, seen to be of those rows."""
        prepared = self.trainer._prepare_inputs(dict(batch))
        if not np.array_equal(self.texts.identify(prepared, name)[0], self.texts.ids[name][rows]):
            raise CacheError(
                "The texts are not those that the data set and its collator gave before: they "
                "changed meanwhile, or _prepare_inputs of the trainer changes them. Make them the "
                "same each time, or leave cache out."
            )
        return self.plan.readers[name].inputs(prepared)

    def _sparse(self, name: str) -> dict[str, SparseForm]:
        """Outputs of which all pairs compare the most probable classes, and the same of them."""
        distiller = self.plan.distiller
        forms = sparse_forms(distiller.pairs_of(name), distiller.losses)
        # Losses see a row a token, of which the second axis is the last.
        return {
            output: replace(form, dim=-1)
            for output, form in forms.items()
            if form.dim in (-1, 1) and output not in ANSWERS
        }

    def _check_pairs(self, name: str, probes: Sequence[Probe]) -> None:
        """Refuse pairs that compare padding, of which nothing is remembered."""
        if not self.texts.padded:
            return
        (first, one), (second, other) = ((p.captured, p.output) for p in probes)
        for pair in self.plan.distiller.pairs_of(name):
            if self.plan.distiller.region_of(pair) in ("tokens", "labelled"):
                continue
            for spec in members(pair.teacher):
                if pair.is_output:
                    key = output_name(spec)
                    if key in ANSWERS:  # whose padding is taken out
                        continue
                    sides = [flatten_tensors(outputs[key]) for outputs in (one, other)]
                elif Tap.parse(spec).side == "weight":
                    continue
                else:
                    sides = [captured.tensors(spec) for captured in (first, second)]
                shapes = [[tuple(t.shape[1:]) for t in tensors] for tensors in sides]
                if shapes[0] != shapes[1]:
                    raise CacheError(self._compares_padding(pair))

    def _compares_padding(self, pair: Pair) -> str:
        loss = type(self.plan.distiller.losses[pair.name]).__name__
        return (
            f"Pair {pair.name!r} compares every position of the teacher's {pair.teacher!r}, "
            f"padding too, of which nothing is remembered. Give it region='tokens', if {loss} "
            "weighs positions, or leave cache out."
        )

    def _check_padding(self, name: str, layout: AnswerLayout, rows: list[int]) -> None:
        """See that what a teacher says of a text does not depend on how far it is padded."""
        lengths = self.texts.lengths[name][rows]
        if lengths[0] == lengths[1]:
            return
        length = int(lengths[1])
        beside = layout.take_apart(*self.ask(name, self._inputs(name, rows)))
        alone = layout.take_apart(*self.ask(name, _part(self._inputs(name, rows[1:]), 1, length)))
        precision = self.plan.distiller.teachers[name].runs_as["precision"]
        half = precision in ("bf16", "fp16") or self.trainer.accelerator.mixed_precision != "no"
        for field in layout.fields:
            cut = tuple(slice(length) if axis == -1 else slice(None) for axis in field.shape)
            a, b = (rows[field.name][(-1, *cut)] for rows in (beside, alone))
            if not a.is_floating_point():
                continue
            a, b = a.float(), b.float()
            gap, scale = (a - b).abs().max().item(), b.abs().max().item()
            if gap > _SLACK["half" if half else "fp32"] * max(scale, 1e-3):
                raise CacheError(
                    f"What teacher {name!r} says of a text depends on how far it is padded "
                    f"({field.name}: {gap:.3g} apart, of at most {scale:.3g}), so it cannot be "
                    "remembered. Pad all texts to one length (padding: max_length), or leave cache "
                    "out."
                )

    # -- the files --------------------------------------------------------------------------------

    def _table(self, name: str) -> TextTable:
        """The texts of the cache: those of the file where these are all among them."""
        own = TextTable.of(self.texts.ids[name], self.texts.lengths[name])
        held = TextTable.load(self.options.table(name))
        stored = stored_identity(self.options.folder(name))
        if held is None or held.sha256 != stored.get("texts"):
            return own
        return held if (held.positions(own.ids) >= 0).all() else own

    def _spec(self, name: str, layout: AnswerLayout, table: TextTable) -> CacheSpec:
        each = _bytes(layout.fields, table.lengths).mean()
        fitting = max(1, int(self.options.shard_mb * 2**20 / each))
        if fitting >= len(table):
            records = len(table)
        else:  # whole batches, of any usual size
            records = 1 << (fitting.bit_length() - 1)
        return CacheSpec(
            fields=tuple(layout.fields),
            samples=len(table),
            identity=self._identity(name, table),
            shard_samples=records,
        )

    def _identity(self, name: str, table: TextTable) -> dict[str, Any]:
        """Whose answers these are; what is kept of them is said by the fields."""
        teacher = self.plan.distiller.teachers[name]
        model: Any = teacher.model
        config = {k: v for k, v in model.config.to_dict().items() if k not in _NO_MATTER}
        text = json.dumps(config, sort_keys=True, default=str)
        own = teacher.preprocess
        return {
            "texts": table.sha256,
            "teacher": self.plan.fingerprints[name],
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "preprocess": getattr(own, "__qualname__", type(own).__qualname__) if own else None,
            "runs_as": teacher.runs_as,
            "mixed_precision": (
                self.trainer.accelerator.mixed_precision if teacher.precision is None else None
            ),
        }

    def _cache(self, name: str, spec: CacheSpec, table: TextTable, *, save: bool) -> TeacherCache:
        path = self.options.table(name)
        held = TextTable.load(path)
        own = TextTable.of(self.texts.ids[name], self.texts.lengths[name])
        try:
            cache = TeacherCache(self.options.folder(name), spec)
        except CacheError as error:
            unknown = 0 if held is None else int((held.positions(own.ids) < 0).sum())
            if unknown and str(spec.identity["texts"]) in str(error):
                raise CacheError(
                    f"{unknown} of the {len(own)} texts of the training data are not in cache "
                    f"{str(self.options.folder(name))!r} (other data, tokenizer or length?). Give "
                    f"another cache.path, or delete that folder.\n{error}"
                ) from error
            raise
        # After the cache has said that it is of these texts.
        if save and self.rank == 0 and (held is None or held.sha256 != table.sha256):
            table.save(path)
        return cache

    def _needed(self, spec: CacheSpec, table: TextTable, name: str) -> list[int]:
        """The shards that hold texts of the data: all, unless the cache was made of more."""
        positions = table.positions(self.texts.ids[name])
        return np.unique(positions // spec.shard_samples).tolist()

    def _missing(self, cache: TeacherCache, needed: list[int]) -> list[int]:
        found = self._together(lambda: cache.missing(needed[self.rank :: self.world], verify=True))
        return sorted(shard for part in found for shard in part)

    def _forecast(
        self, name: str, spec: CacheSpec, table: TextTable, missing: list[int], seconds: float
    ) -> Forecast:
        sizes = _bytes(spec.fields, table.lengths)
        size = spec.shard_samples
        batches = -(-min(size, len(table)) // self.texts.size) * len(missing)
        return Forecast(
            teacher=name,
            folder=str(self.options.folder(name)),
            rows=len(self.texts),
            texts=len(table),
            bytes_total=int(sizes.sum()),
            shards=spec.shards,
            missing=len(missing),
            missing_bytes=int(sum(sizes[s * size : (s + 1) * size].sum() for s in missing)),
            seconds=seconds * batches / self.world,
        )

    def _check_room(self, folder: Path, forecast: Forecast) -> None:
        free = shutil.disk_usage(folder).free
        if forecast.missing_bytes > free:
            raise CacheError(
                f"Remembering teacher {forecast.teacher!r} takes "
                f"{size_text(forecast.missing_bytes)} in {str(folder)!r}, where "
                f"{size_text(free)} are free ({forecast}). Compare fewer layers, store logits "
                "sparsely (TopKKLDivergence), or give another cache.path."
            )

    def _write(
        self,
        name: str,
        layout: AnswerLayout,
        table: TextTable,
        cache: TeacherCache,
        shards: Sequence[int],
    ) -> None:
        rows = table.rows(self.texts.ids[name])
        groups: list[list[int]] = []
        counts: list[int] = []
        for shard in shards:
            own = rows[list(cache.positions(shard))]
            if (own < 0).any():
                raise CacheError(
                    f"File {shard} of cache {str(cache.folder)!r} has to be written, but "
                    f"{int((own < 0).sum())} of its texts are not among these training data. Run "
                    "it with the data that the cache was made of, or give another cache.path."
                )
            parts = groups_of(own.tolist(), self.texts.size)
            groups += parts
            counts.append(len(parts))
        batches = self.texts.batches(groups)
        taken = iter(groups)
        told = time.monotonic()
        for done, (shard, count) in enumerate(zip(shards, counts, strict=True)):
            torch.manual_seed(shard)  # draws of a sparse answer are the same if it is asked again
            parts, lengths = [], []
            for _ in range(count):
                batch, group = next(batches), next(taken)
                parts.append(layout.take_apart(*self.ask(name, self._given(name, batch, group))))
                lengths.append(torch.from_numpy(self.texts.lengths[name][group]))
            joined, joined_lengths = cache.join(parts, lengths if cache.spec.ragged else None)
            cache.write(shard, joined, joined_lengths)
            if time.monotonic() - told > 30 or done + 1 == len(shards):
                told = time.monotonic()
                logger.info("Teacher %r: %d of %d files written.", name, done + 1, len(shards))

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Do something in every process; what fails in one fails in all."""
        if self.world == 1:
            return [work()]
        try:
            outcome: tuple[Any, str | None] = (work(), None)
        except DistillError as error:
            outcome = (None, str(error))
        outcomes = gather_object([outcome])
        for _, failed in outcomes:
            if failed is not None:
                raise CacheError(failed)
        return [value for value, _ in outcomes]


def _length(inputs: Mapping[str, Any]) -> int:
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    assert isinstance(sequence, Tensor)
    return sequence.shape[1]


def _part(inputs: Mapping[str, Any], samples: int, length: int) -> dict[str, Any]:
    """Some samples of a batch, from the first on and around again, with shorter texts."""
    whole, part = _length(inputs), {}
    for key, value in inputs.items():
        if isinstance(value, Tensor):
            rows = torch.arange(samples, device=value.device) % len(value)
            value = value[rows]
            if value.ndim > 1 and value.shape[1] == whole:
                value = value[:, :length]
        part[key] = value
    return part


def _chosen(taps: Sequence[Tap], count: int) -> set[int]:
    """Which of several layers selections choose."""
    chosen: set[int] = set()
    for tap in taps:
        if isinstance(tap.select, tuple):
            chosen |= {index % count for index in tap.select}
        else:
            chosen |= set(range(count)[slice(None) if tap.select is None else tap.select])
    return chosen


def _bytes(fields_: Sequence[Field], lengths: np.ndarray) -> np.ndarray:
    """Bytes of each record."""
    sizes = np.zeros(len(lengths), dtype=np.int64)
    for field in fields_:
        sizes += field.bytes_of(1) * lengths**field.ragged
    return sizes


def _finished(answer: tuple[Captured, Outputs]) -> None:
    """Wait until a device has computed an answer."""
    for tensor in flatten_tensors([answer[0].values(), dict(answer[1])])[-1:]:
        tensor.flatten()[:1].cpu()


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Training after the block draws as if the block had not been."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
