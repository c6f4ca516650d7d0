"""The demos of language models: passages sorted by theme, and sentences by sentiment."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import datasets
import torch
import yaml
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...core.errors import ConfigError, DataError
from ..common.demo import DemoOptions, DemoTask, Metric
from ..common.demo import report as page
from ..common.demo.comparison import TEACHER
from ..common.demo.jobs import EVALUATION_DIR, Job, fingerprint
from ..common.demo.report import Figure, Listing, Section, Table
from ..common.demo.results import read_log
from ..common.demo.task import TEACHER_SEED, run_name
from .arguments import Run, parse
from .build import build_tokenizer, load_trained
from .data import DataArguments, Prepared, prepare_data
from .data.columns import find_text_columns
from .data.sources import load_splits
from .heat_maps import Panel, attention_distance, attention_maps, plot_attention
from .layers import layer_map
from .output import MODEL
from .settings import BASE, merge, read_settings

__all__ = [
    "NlpConfig",
    "NlpDemo",
    "NlpTask",
    "Sst2Table",
    "evaluation_command",
    "flags",
    "shortened",
    "training_length",
    "training_run",
]

DATA_VARIABLE = "TASKDISTILL_DATA"

_WEIGHTS = "model.safetensors"
_PRETRAINING = "pretraining"
_TEXTS = 10  # in the table of what the models say
_DRAWN = 2  # texts whose attention is drawn
_LEAST = 10  # tokens of such a text, where there is one
_READ = 256  # texts over which distances between attention maps are means
_SHOWN_LETTERS = 160
# What a run writes where and how much it says decide nothing of its outcome.
_SILENT = ("output_dir", "disable_tqdm", "logging_steps")
_SPANS = ("start", "stop", "until", "warmup")


@dataclass(frozen=True)
class NlpConfig:
    """A config of ``tools/train_nlp.py``, read and checked.

    Attributes:
        path: Its file.
        settings: Its keys with all it inherits; ``${...}`` as it stands.
        run: What it means.
    """

    path: Path
    settings: dict[str, Any]
    run: Run


@dataclass(frozen=True)
class _Data:
    tokenizer: Any
    prepared: Prepared
    encoded: Any  # the validation set
    texts: Sequence[str]  # the same, to be read
    names: Sequence[str]  # of the classes

    def batch(self, index: int) -> dict[str, Tensor]:
        """One validation text, as a model takes it."""
        batch = self.prepared.collator([self.encoded[index]])
        return {key: value for key, value in batch.items() if key != "labels"}

    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.encoded["input_ids"]]

    def median(self) -> int:
        """The text of median length."""
        lengths = self.lengths()
        return sorted(range(len(lengths)), key=lambda index: (lengths[index], index))[
            len(lengths) // 2
        ]


class NlpTask(DemoTask[NlpConfig]):
    """A demo whose networks classify texts and are trained by ``tools/train_nlp.py``.

    Its configs take their data and their vocabulary from one place: the student's decides for all.
    Models are measured and drawn with eager attention, whose products are counted.
    """

    suffix = ".yaml"
    evaluation = "its task"
    packages = ("torch", "transformers", "datasets", "tokenizers")

    def __init__(self) -> None:
        self._found: dict[Path, _Data] = {}

    # -- configs ----------------------------------------------------------------------------------

    def load_config(self, path: Path) -> NlpConfig:
        """See the base class."""
        return NlpConfig(path, read_settings(str(path)), parse(["--config", str(path)]))

    def sources(self, cfg: NlpConfig) -> tuple[str, str]:
        """See the base class."""
        text = cfg.path.read_text(encoding="utf-8")
        inherits = re.search(rf"^{BASE}\s*:", text, re.MULTILINE)
        return text, yaml.safe_dump(cfg.settings, sort_keys=False) if inherits else ""

    # -- runs -------------------------------------------------------------------------------------

    def training_job(
        self,
        role: str,
        seed: int,
        configs: Mapping[str, NlpConfig],
        options: DemoOptions,
        teacher: Job | None,
    ) -> Job:
        """See the base class."""
        links: dict[str, Any] = {}
        if teacher is not None:
            folder = str(teacher.checkpoint.parent)
            given = (configs[role].settings.get("distill") or {}).get("teacher")
            # Beside the folder there may be how it is loaded.
            links["distill"] = {
                "teacher": {"path": folder} if isinstance(given, Mapping) else folder
            }
        return self.job(run_name(role, seed), configs[role], seed, options, links)

    def job(
        self,
        name: str,
        cfg: NlpConfig,
        seed: int,
        options: DemoOptions,
        links: Mapping[str, Any],
        metric: str | None = None,
    ) -> Job:
        """Return one run of ``tools/train_nlp.py``.

        Args:
            name: Name of the run.
            cfg: What is trained.
            seed: Its seed.
            options: The user's choices.
            links: Keys to change that name what other runs leave; no part of the signature.
            metric: Validation figure to show; the demo's first by default.

        Raises:
            ConfigError: The config cannot be trained as asked.
        """
        return training_run(
            cfg=cfg,
            name=name,
            work_dir=options.work_dir / name,
            seed=seed,
            root=options.root,
            metric=metric or self.metrics[0].key,
            epochs=options.epochs,
            links=links,
        )

    # -- data and models --------------------------------------------------------------------------

    def prepare(self, cfg: NlpConfig) -> str:
        """See the base class."""
        data = self._data(cfg)
        lengths = data.lengths()
        return (
            f"Data: {data.prepared.text}. The {self.sample} that is timed has "
            f"{lengths[data.median()]} tokens, as many as the median."
        )

    def load(self, cfg: NlpConfig, checkpoint: Path) -> nn.Module:
        """See the base class."""
        prepared = self._data(cfg).prepared
        with _quiet():
            return load_trained(str(checkpoint.parent), prepared, "eager").eval()

    def forward_call(self, model: nn.Module, cfg: NlpConfig) -> Callable[[], object]:
        """See the base class."""
        data = self._data(cfg)
        batch = data.batch(data.median())
        return lambda: model(**batch)

    def predict_call(self, model: nn.Module, cfg: NlpConfig) -> Callable[[], int]:
        """See the base class."""
        data = self._data(cfg)
        batch = data.batch(data.median())
        return lambda: _said(model, batch)

    # -- report -----------------------------------------------------------------------------------

    def further_sections(
        self, jobs: Sequence[Job], models: Mapping[str, nn.Module]
    ) -> list[Section]:
        """What each model says of validation texts, and what it attends to."""
        data = self._data(None)
        return [self._answers(data, models), self._attention(data, models)]

    def _data(self, cfg: NlpConfig | None) -> _Data:
        """The data of the demo: those of the first config that asks."""
        if not self._found:
            assert cfg is not None
            run = cfg.run
            with _quiet():
                tokenizer = build_tokenizer(run.model, run.data)
                prepared = prepare_data(run.data, tokenizer, seed=run.training.seed)
            names = prepared.config.get("id2label")
            if prepared.validation is None or isinstance(prepared.validation, dict) or not names:
                raise ConfigError(
                    f"{cfg.path}: a demo needs classes to tell apart and one validation set, but "
                    f"the data are {prepared.text}."
                )
            self._found[cfg.path] = _Data(
                tokenizer,
                prepared,
                prepared.validation,
                _validation_texts(run.data),
                [names[number] for number in range(len(names))],
            )
        return next(iter(self._found.values()))

    def _answers(self, data: _Data, models: Mapping[str, nn.Module]) -> Section:
        rows = []
        count = min(_TEXTS, len(data.encoded))
        for index in (place * len(data.encoded) // count for place in range(count)):
            truth = data.encoded[index]["labels"]
            text = data.tokenizer.decode(data.encoded[index]["input_ids"], skip_special_tokens=True)
            said = [_said(model, data.batch(index)) for model in models.values()]
            answers = [data.names[s] + ("" if s == truth else " ✗") for s in said]
            text = textwrap.shorten(data.texts[index], _SHOWN_LETTERS, placeholder=" ...")
            rows.append([text, data.names[truth], *answers])
        return Section(
            "What the models say",
            text=f"{count} validation {self.sample}s at even distances in the list, the first one "
            "among them; not a selection. ✗: wrong.",
            tables=[Table([self.sample, "truth", *models], rows)],
        )

    def _attention(self, data: _Data, models: Mapping[str, nn.Module]) -> Section:
        (teacher, of_teacher), *students = models.items()
        depths = [_depth(model) for model in models.values()]
        pairs = layer_map("uniform", min(depths[1:]), depths[0])
        lengths = data.lengths()
        # Short enough to be drawn, long enough to be worth it, special tokens included.
        shortest = sorted(range(len(lengths)), key=lambda i: (lengths[i] < _LEAST, lengths[i], i))
        figures = []
        for number, index in enumerate(shortest[:_DRAWN], 1):
            batch = data.batch(index)
            theirs = attention_maps(of_teacher, batch)
            maps = {label: attention_maps(model, batch) for label, model in students}
            tokens = data.tokenizer.convert_ids_to_tokens(data.encoded[index]["input_ids"])
            rows = [
                [
                    Panel(f"{teacher}, layer {far}", theirs[far - 1]),
                    *(
                        Panel(
                            f"{label}, layer {near} (distance "
                            f"{attention_distance(own[near - 1], theirs[far - 1]):.2f})",
                            own[near - 1],
                        )
                        for label, own in maps.items()
                    ),
                ]
                for near, far in pairs
            ]
            truth = data.names[data.encoded[index]["labels"]]
            figures.append(
                Figure(
                    plot_attention(rows, tokens),
                    f"Attention maps of {', '.join(models)} on a validation {self.sample}, a row "
                    f"for each of the students' layers. The {self.sample}: "
                    f"{data.texts[index]}",
                    f"{self.sample.capitalize()} {number}, of {truth}.",
                )
            )
        table = self._distances(data, of_teacher, dict(students), pairs)
        return Section(
            "What the layers attend to",
            text=f"{len(figures)} short validation {self.sample}s. A row of a map shows how "
            "much the token on its left attends to each token below, a mean over the heads of the "
            "layer; the darker, the more (the colour goes by the root). On the left is the "
            "teacher's layer that the student's is compared with. Distance: the share of attention "
            "that would have to go elsewhere to be the teacher's (total variation); in the table "
            f"it is a mean over {min(_READ, len(lengths))} validation {self.sample}s.",
            figures=figures,
            tables=[table],
        )

    def _distances(
        self,
        data: _Data,
        teacher: nn.Module,
        students: Mapping[str, nn.Module],
        pairs: Sequence[tuple[int, int]],
    ) -> Table:
        count = min(_READ, len(data.encoded))
        sums = {label: [0.0] * len(pairs) for label in students}
        for index in (place * len(data.encoded) // count for place in range(count)):
            batch = data.batch(index)
            theirs = attention_maps(teacher, batch)
            for label, student in students.items():
                ours = attention_maps(student, batch)
                for place, (near, far) in enumerate(pairs):
                    sums[label][place] += attention_distance(ours[near - 1], theirs[far - 1])
        columns = [f"layer {near}, teacher's {far}" for near, far in pairs]
        rows = [[label, *(f"{total / count:.3f}" for total in own)] for label, own in sums.items()]
        return Table(["distance from the teacher's attention", *columns], rows)


class NlpDemo(NlpTask):
    """Passages of Python's own documentation and their themes; the teacher is pre-trained first."""

    name = "nlp"
    folder = "nlp/demo"
    title = "Distilling a language model: passages of Python's documentation by theme"
    metrics = (Metric("accuracy", "accuracy"), Metric("f1_macro", "macro F1"))
    latency_note = "one validation passage, from tokens to the theme"
    sample = "passage"

    def prepare(self, cfg: NlpConfig) -> str:
        """See the base class."""
        return (
            f"{super().prepare(cfg)} They come from the help texts of this Python, so another "
            "version has slightly others. The teacher is pre-trained on the training passages "
            "(masked words), which its training time takes in. The distilled student first learns "
            "from the teacher's layers, without labels: until it sees them, its accuracy is chance."
        )

    def plan(self, configs: Mapping[str, NlpConfig], options: DemoOptions) -> list[Job]:
        """Put the teacher's pre-training in front."""
        jobs = super().plan(configs, options)
        cfg = self.load_config(configs[TEACHER].path.with_name(f"{_PRETRAINING}{self.suffix}"))
        before = self.job(_PRETRAINING, cfg, TEACHER_SEED, options, {}, metric="mlm_accuracy")
        before = replace(before, role=_PRETRAINING, effort=2.0)
        teacher = self.job(
            jobs[0].name,
            configs[TEACHER],
            TEACHER_SEED,
            options,
            {"model": str(before.checkpoint.parent)},
        )
        teacher = replace(
            jobs[0], command=teacher.command, needs=(before.name,), after=(before.name,)
        )
        return [before, teacher, *jobs[1:]]

    def further_sections(
        self, jobs: Sequence[Job], models: Mapping[str, nn.Module]
    ) -> list[Section]:
        """Add how the teacher was pre-trained."""
        before = next(job for job in jobs if job.role == _PRETRAINING)
        rows = read_log(before.work_dir).val
        curve = page.metric_curve(TEACHER, page.TEACHER_COLOUR, rows, "perplexity")
        path = Path(before.command[before.command.index("--config") + 1])
        return [
            *super().further_sections(jobs, models),
            Section(
                "The teacher's pre-training",
                text="Words of the training passages are masked, and the teacher learns to fill "
                "them in before it sees a theme. Perplexity: of the masked words of the validation "
                "passages.",
                figures=[
                    Figure(
                        page.plot_curves([curve], before.unit, "perplexity"),
                        "Perplexity on masked words of the validation passages over the teacher's "
                        "pre-training.",
                    )
                ],
                listings=[Listing(f"Config {path.name}", path.read_text(encoding="utf-8"))],
            ),
        ]


class Sst2Table(NlpTask):
    """The ways to distil compared on film reviews (SST-2), which are not part of the package."""

    name = "sst2"
    folder = "nlp/sst2"
    title = "Distilling a language model: the sentiment of sentences (SST-2)"
    metrics = (Metric("accuracy", "accuracy"),)
    latency_note = "one validation sentence, from tokens to the sentiment"
    variants: ClassVar[Mapping[str, str]] = {
        "logits": "+ logits",
        "hidden": "+ hidden states",
        "attention": "+ attention maps",
    }
    sample = "sentence"

    FILES: ClassVar[Sequence[str]] = ("train.tsv", "test.tsv", "bert_uncased_vocab.txt")

    def load_configs(self, folder: Path) -> dict[str, NlpConfig]:
        """See the base class.

        Raises:
            DataError: The data are not where the environment says.
        """
        check_sst2(self.FILES)
        return super().load_configs(folder)


def training_run(
    cfg: NlpConfig,
    name: str,
    work_dir: Path,
    seed: int,
    root: Path,
    metric: str = "",
    epochs: int | None = None,
    links: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Job:
    """Return one run of ``tools/train_nlp.py``.

    Args:
        cfg: What is trained, with the keys in ``given`` merged in.
        name: Name of the run.
        work_dir: Its folder.
        seed: Its seed.
        root: Folder that holds ``tools``.
        metric: Validation figure to show; empty for any.
        epochs: Epochs instead of the config's own; its schedules are scaled along.
        links: Keys that name what other runs leave; no part of the signature.
        given: Further keys, which are changed on the command line.

    Raises:
        ConfigError: The config cannot be trained as asked.
    """
    given = given or {}
    changes: dict[str, Any] = {"seed": seed}
    if epochs is not None:
        changes |= shortened(cfg, epochs)
    checkpoint = work_dir / MODEL / _WEIGHTS
    decisive = merge(cfg.settings, changes)
    told = merge(merge(given, changes), links or {})
    return Job(
        name=name,
        command=(
            *_start(cfg.path, root),
            *("--output_dir", str(work_dir), "--resume"),
            *flags(told),
        ),
        work_dir=work_dir,
        length=epochs or training_length(cfg),
        checkpoint=checkpoint,
        metric=metric,
        signature=fingerprint({k: v for k, v in decisive.items() if k not in _SILENT}),
        evaluate=evaluation_command(
            cfg.path, checkpoint.parent, work_dir / EVALUATION_DIR, root, given
        ),
    )


def evaluation_command(
    config: Path,
    model: Path,
    work_dir: Path,
    root: Path,
    given: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Return the command line of ``tools/train_nlp.py`` that validates a trained model.

    Args:
        config: Path of the config whose data it is validated on.
        model: Folder of the model.
        work_dir: The figures go into a folder in it.
        root: Folder that holds ``tools``.
        given: Keys that are changed on the command line.
    """
    return (
        *_start(config, root),
        *("--output_dir", str(work_dir / "evaluation"), "--eval_only", str(model)),
        *flags(given or {}),
    )


def _start(config: Path, root: Path) -> tuple[str, ...]:
    tool = str(root / "tools" / "train_nlp.py")
    return (sys.executable, tool, "--config", str(config), "--disable_tqdm", "true")


def check_sst2(files: Sequence[str]) -> None:
    """See that the folder of SST-2 is there.

    Raises:
        DataError: ``$TASKDISTILL_DATA`` is not set, or lacks some of ``files`` in ``sst2``.
    """
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise DataError(
            f"${DATA_VARIABLE} is not set. SST-2 is not part of the package: set it to a folder "
            f"that holds sst2/ with {', '.join(files)}."
        )
    lacking = [name for name in files if not Path(root, "sst2", name).is_file()]
    if lacking:
        raise DataError(
            f"{Path(root, 'sst2')} lacks {', '.join(lacking)}; expected {', '.join(files)} in the "
            f"folder sst2 of ${DATA_VARIABLE}."
        )


def training_length(cfg: NlpConfig) -> int:
    """Return the epochs of a run.

    Raises:
        ConfigError: The config counts steps, or has no whole number of epochs.
    """
    training = cfg.run.training
    epochs = training.num_train_epochs
    if training.max_steps > 0 or epochs != int(epochs) or training.eval_strategy != "epoch":
        raise ConfigError(
            f"{cfg.path}: a run here is a whole number of epochs, each validated; found "
            f"num_train_epochs={epochs}, max_steps={training.max_steps}, "
            f"eval_strategy={training.eval_strategy}. Leave out max_steps and eval_strategy."
        )
    return int(epochs)


def shortened(cfg: NlpConfig, epochs: int) -> dict[str, Any]:
    """Return the keys that train ``cfg`` for ``epochs``, its schedules scaled in proportion.

    Args:
        cfg: A config that counts epochs.
        epochs: The new length.

    Raises:
        ConfigError: ``epochs`` is not positive, or the config counts steps.
    """
    if epochs < 1:
        raise ConfigError(f"--epochs {epochs} is not positive; expected at least one.")
    scale = epochs / training_length(cfg)
    changes: dict[str, Any] = {"num_train_epochs": epochs}
    if cfg.run.training.warmup_steps >= 1:
        changes["warmup_steps"] = max(1, round(cfg.run.training.warmup_steps * scale))
    distill = cfg.run.distill or {}
    recipe = distill.get("recipe")
    options = recipe if isinstance(recipe, Mapping) else {"name": recipe}
    if distill.get("unit", "epoch") != "epoch" or options.get("name") == "mobilebert":
        raise ConfigError(
            f"--epochs {epochs} does not apply to {cfg.path}: its distillation counts steps."
        )
    scaled: dict[str, Any] = {
        key: [_scaled(line, _SPANS, scale) for line in distill[key]]
        for key in ("pairs", "stages")
        if distill.get(key)
    }
    if "intermediate" in options:
        scaled["recipe"] = _scaled(options, ("intermediate",), scale)
    return {**changes, "distill": scaled} if scaled else changes


def _validation_texts(args: DataArguments) -> list[str]:
    """The texts of the validation set, in its order."""
    splits = load_splits(args).with_validation(args.validation_split).limited(args)
    rows = splits.validation[""]
    columns = [rows[column] for column in find_text_columns(rows, args)]
    return [" / ".join(texts) for texts in zip(*columns, strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of datasets and transformers, which would tear up the demo's own."""
    before = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before[0]:
            datasets.enable_progress_bars()
        if before[1]:
            logging.enable_progress_bar()


def _scaled(line: Mapping[str, Any], keys: Sequence[str], scale: float) -> dict[str, Any]:
    return {k: v * scale if k in keys and v is not None else v for k, v in line.items()}


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Return keys of a config as flags of ``tools/train_nlp.py``.

    Example:
        >>> flags({"seed": 1, "distill": {"task_weight": 0.5}})
        ['--seed', '1', '--distill', '{"task_weight": 0.5}']
    """
    found = []
    for key, value in changes.items():
        found += [f"--{key}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return found


def _said(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    with torch.no_grad():
        return int(model(**batch).logits.argmax(dim=-1))


def _depth(model: nn.Module) -> int:
    return cast(PreTrainedModel, model).config.num_hidden_layers
