"""Building the cache of what teachers say of the training data."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_dist_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.answers import AnswerLayout, Probe, sparse_forms
from ...core.cache import CacheSpec, TeacherCache, stored_identity
from ...core.errors import CacheError, ConfigError
from ...core.taps import Captured
from ..common.amounts import size_text, time_text
from .model import DistilledModel
from .preprocess import OwnImages
from .remember import IMAGE, CacheOptions, ImageGuard, Remembered, Store
from .seeded import POSITION, SeededDataset, Views, seeded
from .steps import TurnOptimWrapper
from .views import check_data, draws_at_random, passes, per_batch, trial_places

__all__ = ["Forecast", "ensure"]

_TOOL = "tools/cache_teacher.py"
_SECONDS = 30.0  # between two lines of progress


@dataclass(frozen=True)
class Forecast:
    """What the cache of one teacher takes.

    Args:
        teacher: Its name.
        folder: Where it is.
        samples: Of the data set.
        views: Pictures of each.
        record_bytes: Bytes a picture.
        missing: Pictures that are not there yet.
        seconds: How long these take, about, on all processes of the run together.
    """

    teacher: str
    folder: Path
    samples: int
    views: int
    record_bytes: int
    missing: int
    seconds: float

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.samples * self.views * self.record_bytes

    def __str__(self) -> str:
        done = self.samples * self.views - self.missing
        built = f", of which {done} pictures are there" if done else ""
        return (
            f"Cache of teacher {self.teacher!r} in {str(self.folder)!r}: {self.samples} samples x "
            f"{self.views} views, {self.record_bytes} bytes a picture, "
            f"{size_text(self.total_bytes)}{built}, about {time_text(self.seconds)}."
        )


def ensure(runner: Any, *, dry_run: bool = False, build: bool | None = None) -> list[Forecast]:
    """See that the teachers of a run are remembered, and build what is missing.

    Called when the run's model, training loader and optimizers are there and before its first step,
    by all of its processes. Each builds the shards of its turn. What is there is verified whole.

    Args:
        runner: Of a config whose ``distill`` has a ``cache``.
        dry_run: Forecast alone: nothing is written, and nothing remembered.
        build: Whether to build what is missing; as the config says by default.

    Returns:
        What each teacher's cache takes.

    Raises:
        ConfigError: If the data or networks do not go with a cache.
        CacheError: If a cache is of something else, cannot be written, or is incomplete and not to
            be built.
    """
    model: DistilledModel = getattr(runner.model, "module", runner.model)
    options = model.cache_options
    assert options is not None
    loader = runner.train_dataloader
    dataset = check_data(loader, runner.hooks, model.data_preprocessor)
    with seeded(options.seed):
        asker = _Asker(runner, model, loader, dataset)
        dataset.views = Views(1, options.seed)
        try:
            drafts = [_draft(asker, name, options) for name in model.distiller.teachers]
            count = _count(options, asker, drafts)
        finally:
            dataset.views = None
        rank, world = get_dist_info()
        views = Views(count, options.seed, world, rank)
        builders = [_Builder(asker, draft, views, options) for draft in drafts]
        dataset.views = views
        try:
            build = options.build if build is None else build
            forecasts = [builder.prepare(writes=build and not dry_run) for builder in builders]
            if dry_run:
                dataset.views = None
                return forecasts
            for builder, forecast in zip(builders, forecasts, strict=True):
                builder.complete(forecast, build)
        except BaseException:
            dataset.views = None
            raise
    stores = {builder.draft.teacher: builder.store() for builder in builders}
    model.remembered = Remembered(stores, len(dataset))
    return forecasts


# -- asking as in training -------------------------------------------------------------------------


class _Asker:
    """Ask teachers about samples of the training data, by the very call of training."""

    def __init__(
        self, runner: Any, model: DistilledModel, loader: DataLoader, dataset: SeededDataset
    ) -> None:
        self.runner, self.model, self.loader, self.dataset = runner, model, loader, dataset
        self.shape: tuple[int, ...] | None = None
        self._sizes: set[tuple[int, ...]] = set()

    @property
    def batch_size(self) -> int:
        """Samples a step of training."""
        return per_batch(self.loader)

    def load(self, positions: Sequence[int]) -> Any:
        """A batch as the training loader collates it."""
        return self.loader.collate_fn([self.dataset.at(position) for position in positions])

    def pictures(self, data: Any) -> tuple[Tensor, Any]:
        """A collated batch as the student's preprocessor shows it.

        Raises:
            ConfigError: If the batch does not say which samples it holds.
            CacheError: If images of different size are padded to one.
        """
        if not isinstance(data, dict) or POSITION not in data:
            raise ConfigError(
                "distill.cache: the loader's collate_fn drops the entry of a sample that says "
                f"which it is ({POSITION!r}). Use one that keeps all entries (pseudo_collate, "
                "default_collate), or leave distill.cache out."
            )
        data = {key: value for key, value in data.items() if key != POSITION}
        images, samples = self._preprocess(data)
        shape = tuple(images.shape[1:])
        self.shape = self.shape or shape
        for index, raw in enumerate(data["inputs"]):
            if tuple(raw.shape) not in self._sizes:
                alone = {key: value[index : index + 1] for key, value in data.items()}
                own = tuple(self._preprocess(alone)[0].shape[1:])
                if {own, shape} != {self.shape}:
                    raise CacheError(
                        f"distill.cache: the training images have several sizes ({self.shape} and "
                        f"{own if own != self.shape else shape} as the student sees them); what a "
                        "teacher says of one then depends on the padding that its neighbours in "
                        "the batch give it. Make sizes fixed (Resize with keep_ratio=False, or "
                        "Pad(size=...) in the pipeline), or leave distill.cache out."
                    )
                self._sizes.add(tuple(raw.shape))
        return images, samples

    def _preprocess(self, data: Any) -> tuple[Tensor, Any]:
        with seeded(0):
            shown: Any = self.model.data_preprocessor(data, True)
        return shown["inputs"], shown.get("data_samples")

    def ask(self, name: str, images: Tensor, samples: Any) -> tuple[Captured, Any]:
        """A teacher's answer."""
        with self._as_in_training():
            return self.model.ask_teacher(name, images, samples)

    def surroundings(self, device: torch.device) -> str | None:
        """The autocast of training, in which a teacher without a precision of its own runs."""
        with self._as_in_training():
            if not torch.is_autocast_enabled(device.type):
                return None
            return str(torch.get_autocast_dtype(device.type))

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        wrapper = self.runner.optim_wrapper
        if isinstance(wrapper, TurnOptimWrapper):
            wrapper = wrapper[wrapper.main]
        with torch.no_grad(), wrapper.optim_context(self.runner.model):
            yield


# -- what a record holds ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """What is known of a teacher's cache before it is known how many views there are."""

    teacher: str
    layout: AnswerLayout
    guard: ImageGuard
    captured: Captured

    @property
    def fields(self) -> tuple[Any, ...]:
        """Those of a record."""
        return (*self.layout.fields, self.guard.field)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return sum(field.bytes_of(1) for field in self.fields)


def _draft(asker: _Asker, name: str, options: CacheOptions) -> _Draft:
    probes = []
    for count in (2, 3):
        places = trial_places(len(asker.dataset))
        images, samples = asker.pictures(
            asker.load([places[i % len(places)] for i in range(count)])
        )
        probes.append(Probe(*asker.ask(name, images, samples), count))
    assert asker.shape is not None
    distiller = asker.model.distiller
    forms = sparse_forms(distiller.pairs_of(name), distiller.losses)
    sparse = {k: form for k, form in forms.items() if k in asker.model.task.sparse_outputs}
    layout = AnswerLayout.learn(probes, dtype=options.dtype, sparse=sparse)
    return _Draft(name, layout, ImageGuard(asker.shape), probes[0].captured)


def _count(options: CacheOptions, asker: _Asker, drafts: Sequence[_Draft]) -> int:
    """How many views are kept.

    Raises:
        ConfigError: If the config does not say so and the data are augmented at random.
        CacheError: If a sample does not come again under its own seed.
    """
    random = draws_at_random(asker.dataset, options.seed)
    every = passes(asker.runner, asker.loader)
    if options.views == "epochs":
        return every
    if options.views is not None:
        return int(options.views)
    if not random:
        return 1
    one = len(asker.dataset) * sum(draft.record_bytes for draft in drafts)
    raise ConfigError(
        "distill.cache: the training pipeline augments at random, so that each sample has another "
        "picture in each pass. Say how many are kept (passes take them in turn): views=1 "
        f"({size_text(one)}; every pass shows the same), views=N, or views='epochs' (one for each "
        f"of {every} passes: {size_text(one * every)})."
    )


def _identity(
    asker: _Asker, draft: _Draft, views: Views, images: tuple[int, ...]
) -> dict[str, Any]:
    """What the answers depend on, in JSON values."""
    model, cfg = asker.model, asker.runner.cfg
    teacher = model.distiller.teachers[draft.teacher]
    entry = cfg.train_dataloader.dataset
    if entry.get("type") == "SeededDataset":
        entry = entry.dataset
    student = cfg.model.get("student", {})
    return {
        "teacher": {
            "sha256": teacher.sha256,
            # Of the same weights, strides and activations make another network.
            "network": _digest(re.sub(r" at 0x[0-9a-f]+", "", repr(teacher.model))),
            # Compiled, it differs by rounding alone.
            "runs_as": {k: v for k, v in teacher.runs_as.items() if k != "compiled"},
            "autocast": asker.surroundings(teacher.device) if teacher.precision is None else None,
            "images": _own_images(teacher.preprocess),
        },
        "taps": sorted(draft.captured.taps.specs),
        "views": {"count": views.count, "seed": views.seed},
        "images": list(images),
        "data": {"samples": len(asker.dataset), "config": _plain(_unrooted(entry))},
        "data_preprocessor": _plain(student.get("data_preprocessor")),
    }


def _unrooted(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a dataset without the folder it lies in: data may be moved."""
    return {key: value for key, value in dataset.items() if key not in ("data_root", "root")}


def _own_images(preprocess: Any) -> Any:
    if not isinstance(preprocess, OwnImages):
        return None if preprocess is None else type(preprocess).__name__
    theirs, found = preprocess.teacher, dict[str, Any](scale=preprocess.scale)
    if preprocess.converts:
        for key in ("mean", "std"):
            value = getattr(theirs, key, None)
            found[key] = value.flatten().tolist() if isinstance(value, Tensor) else value
        for key in ("_channel_conversion", "pad_value", "pad_size_divisor"):
            found[key] = getattr(theirs, key, None)
    return found


def _plain(value: Any) -> Any:
    """A config as JSON; what it holds of objects by their names, of long lists a digest."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry) for entry in value]
        if any(isinstance(entry, dict) for entry in entries):
            # By place and kind, so that a difference is told where it is.
            return {f"{i}": entry for i, entry in enumerate(entries)}
        return entries if len(entries) <= 32 else _digest(json.dumps(entries))
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    return _digest(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- building --------------------------------------------------------------------------------------


class _Positions(Dataset):
    """All pictures of a data set, by position."""

    def __init__(self, dataset: SeededDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        assert self.dataset.views is not None
        return self.dataset.views.count * len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self.dataset.at(position)


class _Builder:
    """Complete the cache of one teacher."""

    def __init__(self, asker: _Asker, draft: _Draft, views: Views, options: CacheOptions) -> None:
        self.asker, self.draft, self.views = asker, draft, views
        self.folder = Path(options.path).expanduser() / draft.teacher
        self._adopt()
        samples = views.count * len(asker.dataset)
        per_shard = max(1, int(options.shard_mb * 2**20) // draft.record_bytes)
        # A power of 2, of which batches fill most shards without a rest.
        per_shard = min(samples, 1 << (per_shard.bit_length() - 1))
        self.spec = CacheSpec(
            draft.fields, samples, _identity(asker, draft, views, draft.guard.shape), per_shard
        )
        self.cache: TeacherCache | None = None

    def store(self) -> Store:
        """What is remembered of the teacher."""
        assert self.cache is not None
        return Store(self.cache, self.draft.layout, self.draft.captured.taps, self.draft.guard)

    def _adopt(self) -> None:
        """Let a teacher whose precision was measured run as it did when the cache was begun."""
        stored = stored_identity(self.folder).get("teacher")
        runs_as = stored.get("runs_as") if isinstance(stored, dict) else None
        if isinstance(runs_as, Mapping):
            self.asker.model.distiller.teachers[self.draft.teacher].adopt(runs_as)

    def prepare(self, writes: bool) -> Forecast:
        """Open the cache and say what it takes; where nothing is to be written, if it is there."""
        rank, _ = get_dist_info()
        if writes or (self.folder / "index.json").is_file():
            if rank == 0:  # makes the folder
                self.cache = TeacherCache(self.folder, self.spec)
            barrier()
            self.cache = self.cache or TeacherCache(self.folder, self.spec)
        missing = range(self.spec.shards)
        if self.cache is not None:
            missing = self.cache.missing(verify=False)
        count = sum(len(self.spec.positions(shard)) for shard in missing)
        return Forecast(
            self.draft.teacher,
            self.folder,
            len(self.asker.dataset),
            self.views.count,
            self.draft.record_bytes,
            count,
            self._seconds(count) if count else 0.0,
        )

    def _seconds(self, pictures: int) -> float:
        """How long that many take, from one batch after a first one."""
        asker, times = self.asker, [0.0, 0.0]
        size = asker.batch_size
        for _ in range(2):
            begin = time.perf_counter()
            data = asker.load([i % len(asker.dataset) for i in range(size)])
            loaded = time.perf_counter()
            self._rows(data, size)
            times = [loaded - begin, time.perf_counter() - loaded]
        workers, (_, world) = asker.loader.num_workers, get_dist_info()
        step = max(times[0] / workers, times[1]) if workers else sum(times)
        return step * math.ceil(pictures / size) / world

    def complete(self, forecast: Forecast, build: bool) -> None:
        """Verify what is there, and build what is missing or damaged.

        Raises:
            CacheError: If something is missing and not to be built, or there is no room for it.
        """
        logger, (rank, world) = self.asker.runner.logger, get_dist_info()
        if forecast.missing:
            logger.info(str(forecast))
            shown = passes(self.asker.runner, self.asker.loader)
            if self.views.count > shown:
                logger.warning(
                    f"distill.cache.views={self.views.count}, but this run goes through its data "
                    f"{shown} times: it does not see the other views."
                )
            if build:
                self._check_room(forecast)
        barrier()  # nobody writes before all have looked
        wanted = list(range(rank, self.spec.shards, world))
        if self.cache is not None:
            wanted = self.cache.missing(wanted)
        if wanted and not build:
            raise CacheError(
                f"The cache of teacher {self.draft.teacher!r} in {str(self.folder)!r} lacks "
                f"{len(wanted)} of {self.spec.shards} shards (absent or damaged), which are not to "
                f"be built here. Build them by {_TOOL} CONFIG, or train with "
                "distill.cache.build=True."
            )
        self._build(wanted, logger)
        barrier()
        if not forecast.missing:
            rebuilt = f"; {len(wanted)} damaged shards were built anew" if wanted else ""
            logger.info(
                f"Teacher {self.draft.teacher!r} is remembered from {str(self.folder)!r} "
                f"({size_text(forecast.total_bytes)}){rebuilt}."
            )

    def _check_room(self, forecast: Forecast) -> None:
        needed = forecast.missing * forecast.record_bytes
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"The cache of teacher {forecast.teacher!r} in {str(self.folder)!r} needs "
                f"{size_text(needed)} more, but {size_text(free)} are free there. Make room, give "
                "another distill.cache.path, keep fewer views, or compare less (fewer taps, "
                "dtype='fp16', TopKKLDivergence for logits)."
            )

    def _build(self, shards: Sequence[int], logger: logging.Logger) -> None:
        assert self.cache is not None
        batch, plan = self.asker.batch_size, []
        for shard in shards:
            places = self.spec.positions(shard)
            for start in range(0, len(places), batch):
                own = list(places[start : start + batch])
                # Filled up: of other batch sizes, some libraries compute in another order.
                plan.append((shard, len(own), [own[i % len(own)] for i in range(batch)]))
        loader = self.asker.loader
        batches: Any = DataLoader(
            _Positions(self.asker.dataset),
            batch_sampler=[positions for _, _, positions in plan],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        parts: list[dict[str, Tensor]] = []
        begin = told = time.perf_counter()
        for number, ((shard, count, positions), data) in enumerate(
            zip(plan, batches, strict=True), 1
        ):
            draws = positions[0]
            parts.append({k: v.cpu() for k, v in self._rows(data, count, draws).items()})
            if number == len(plan) or plan[number][0] != shard:
                self.cache.write(shard, *self.cache.join(parts))
                parts = []
            now = time.perf_counter()
            if now - told > _SECONDS:
                told, left = now, (now - begin) / number * (len(plan) - number)
                logger.info(
                    f"Teacher {self.draft.teacher!r}: batch {number} of {len(plan)} is kept, "
                    f"about {time_text(left)} to go."
                )

    def _rows(self, data: Any, count: int, draws: int = 0) -> dict[str, Tensor]:
        """The records of a batch's first pictures."""
        images, samples = self.asker.pictures(data)
        captured, output = self.asker.ask(self.draft.teacher, images, samples)
        generator = torch.Generator(images.device).manual_seed(draws)
        rows = self.draft.layout.take_apart(captured, output, generator)
        rows[IMAGE] = self.draft.guard.probe(images)
        return {name: row[:count] for name, row in rows.items()}
