"""Encoders under transformers' Trainer: the demo's, and MobileBERT with its own teacher."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from nlp import stepper
from torch import nn
from transformers import Trainer, TrainingArguments

from taskdistill.core.teacher import FrozenTeacher
from taskdistill.tasks.nlp.arguments import parse
from taskdistill.tasks.nlp.build import build_model, build_tokenizer
from taskdistill.tasks.nlp.caching import ensure
from taskdistill.tasks.nlp.callback import DistillationCallback
from taskdistill.tasks.nlp.data import prepare_data
from taskdistill.tasks.nlp.models.ib_bert import IBBertConfig, IBBertForPreTraining
from taskdistill.tasks.nlp.settings import read_settings

from .subject import WAYS, Built, Subject, Way, choose, hold_answers, runs_as, side_of

__all__ = ["demo", "mobilebert"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "nlp"
_NUMBERS = itertools.count()
# A text is no image.
_WAYS = {label: way for label, way in WAYS.items() if "channels_last" not in (way.switches or {})}


@dataclass(frozen=True)
class Texts:
    """A student's training, which can be had in several ways.

    Attributes:
        student: Builds it, always with the same weights.
        teacher: Likewise.
        recipe: As for a DistillationCallback.
        rows: The texts of a batch.
        collator: Makes a batch of them; transformers' own by default.
        args: The command line.
        scratch: Folder for output folders and the cache.
    """

    student: Any
    teacher: Any
    recipe: Any
    rows: Any
    collator: Any
    args: argparse.Namespace
    scratch: Path

    def __call__(self, way: Way) -> Built:
        """Everything up to the first step."""
        options: dict[str, Any] = {}
        callbacks, number = [], next(_NUMBERS)
        if way.distilled:
            if way.cache:
                folder = self.scratch / f"cache{number}"
                options["cache"] = dict(path=str(folder), dtype="fp16")
            teacher = FrozenTeacher(self.teacher(), **(way.teacher or {}))
            callbacks.append(DistillationCallback(teacher, self.recipe, **options))
        trainer = Trainer(
            model=self.student(),
            args=TrainingArguments(
                output_dir=str(self.scratch / f"run{number}"),
                per_device_train_batch_size=len(self.rows),
                use_cpu=self.args.device == "cpu",
                bf16="amp" in (way.switches or {}),
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=self.rows,
            data_collator=self.collator,
            callbacks=callbacks,
        )
        if not callbacks:
            return Built(stepper(trainer), {})
        if way.cache:
            ensure(trainer)
        stack = contextlib.ExitStack()
        stack.enter_context(trainer.distillation.active())  # type: ignore[attr-defined]
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
        distiller = trainer.distillation.distiller  # type: ignore[attr-defined]
        if way.held:
            hold_answers(distiller)
        return Built(stepper(trainer), runs_as(distiller.teachers), stack)


def demo(args: argparse.Namespace, scratch: Path) -> Subject:
    """The demo's encoders on its passages: logits, hidden states, attention maps."""
    datasets.disable_progress_bars()
    folder = CONFIGS / "demo"
    settings = read_settings(str(folder / "distilled.yaml"))
    run, pretrained = (
        parse(["--config", str(folder / f"{name}.yaml"), *more])
        for name, *more in (("student",), ("pretraining", "--task", "classification"))
    )
    tokenizer = build_tokenizer(run.model, run.data)
    prepared = prepare_data(run.data, tokenizer)
    batch = args.batch or run.training.per_device_train_batch_size
    rows = [prepared.train[index] for index in range(batch)]  # type: ignore[index]
    # Of both stages, which the demo has one after the other.
    lines = [dict(line) for line in settings["distill"]["pairs"] if "kept" not in line["name"]]
    for line in lines:
        del line["stage"]
    texts = Texts(
        _seeded(lambda: build_model(run.model, run.data, prepared, tokenizer)),
        _seeded(lambda: build_model(pretrained.model, run.data, prepared, tokenizer)),
        lines,
        rows,
        prepared.collator,
        args,
        scratch,
    )
    return Subject("configs/nlp/demo, all its terms at once", batch, choose(texts, _WAYS))


def mobilebert(args: argparse.Namespace, scratch: Path) -> Subject:
    """MobileBERT and IB-BERT-large: feature and attention maps of every layer, and the head."""
    tokens, batch = side_of(args, 128), args.batch or 64
    # Of a small trial, a few blocks are enough.
    changes = dict(num_hidden_layers=24 if tokens >= 128 else 2)
    generator = torch.Generator().manual_seed(0)
    rows: Sequence[Mapping[str, Any]] = [
        dict(
            input_ids=torch.randint(1, 30_000, (tokens,), generator=generator),
            attention_mask=torch.ones(tokens, dtype=torch.long),
            token_type_ids=torch.zeros(tokens, dtype=torch.long),
            labels=torch.where(torch.rand(tokens, generator=generator) < 0.15, 7, -100),
            next_sentence_label=torch.tensor(index % 2),
        )
        for index in range(batch)
    ]
    texts = Texts(
        _seeded(lambda: IBBertForPreTraining(IBBertConfig.mobilebert_straight(**changes))),
        _seeded(lambda: IBBertForPreTraining(IBBertConfig.large(**changes))),
        dict(name="mobilebert", strategy="auxiliary"),
        rows,
        None,
        args,
        scratch,
    )
    return Subject(
        f"MobileBERT from IB-BERT-large, {changes['num_hidden_layers']} layers, {tokens} tokens",
        batch,
        choose(texts, _WAYS),
    )


def _seeded(make: Any) -> Any:
    """The same weights, whenever it is called."""

    def build() -> nn.Module:
        transformers.set_seed(1)
        return make()

    return build
