"""The command line of ``tools/train_nlp.py``."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import Trainer, set_seed

from ...core.errors import CheckpointError, ConfigError, DataError, DistillError, TeacherError
from ..common.files import write_text
from ..common.processes import leave_process_group
from .arguments import ModelArguments, Run, parse, teacher_names
from .build import build_model, build_tokenizer, load_trained, read_model_config
from .callback import DistillationCallback
from .data import Prepared, prepare_data
from .output import MODEL, RESULTS, check_output, claim, last_checkpoint, save_model
from .remember import CacheOptions
from .scalars import ScalarsCallback, plain_metrics

__all__ = ["EVALUATION", "check_sources", "make_trainer", "run", "start_logging", "train"]

EVALUATION = "eval_results.json"
"""What ``--eval_only`` writes into the output folder."""

_log = logging.getLogger(__name__)


def run(command: Callable[[Sequence[str] | None], object]) -> None:
    """Run a command line; errors a user can mend end in one message, without a traceback.

    Args:
        command: Takes the arguments; ``None`` for those of the process.
    """
    try:
        command(None)
    except DistillError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nInterrupted. The last checkpoint is in the output folder; the same command with "
            "--resume continues from it.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(130)


def train(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train a student, distilling where the config has a ``distill`` entry; or evaluate one.

    Args:
        argv: Arguments; those of the process by default. ``--help`` lists them.

    Returns:
        The final figures on the validation data, as in ``all_results.json``.

    Raises:
        DistillError: If anything asked for cannot be meant or is not there; before training.
    """
    run = parse(argv)
    start_logging(run)
    check_sources(run)
    figures = _evaluate_only(run, run.eval_only) if run.eval_only is not None else _train(run)
    leave_process_group()
    return figures


def _train(run: Run) -> dict[str, float]:
    args, folder = run.training, Path(str(run.training.output_dir))
    with args.main_process_first(local=False, desc="output folder"):
        if args.process_index == 0:
            resume = run.resume or args.resume_from_checkpoint is not None
            check_output(folder, resume=resume, overwrite=run.overwrite)
    checkpoint = args.resume_from_checkpoint or (last_checkpoint(folder) if run.resume else None)
    trainer, prepared = make_trainer(run)
    if args.process_index == 0:
        claim(folder, run.given, overwrite=run.overwrite)
    if checkpoint is not None:
        _log.info("Going on from %s.", checkpoint)
    trained = trainer.train(resume_from_checkpoint=checkpoint).metrics
    figures = trainer.evaluate() if prepared.validation is not None else {}
    save_model(trainer, folder / MODEL)
    results = {
        "epoch": trainer.state.epoch,
        "step": trainer.state.global_step,
        **plain_metrics(figures),
        "train_runtime": trained.get("train_runtime"),  # of this process, if it went on
    }
    if args.process_index == 0:
        write_text(folder / RESULTS, f"{json.dumps(results, indent=1)}\n")
        print(_table(plain_metrics(figures), prepared, str(folder / MODEL)))
    return results


def make_trainer(run: Run) -> tuple[Trainer, Prepared]:
    """Read the data, build the student and everything around it, ready to be trained.

    Raises:
        DistillError: If something does not fit, or there are no training data.
    """
    args = run.training
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="data"):
        tokenizer = build_tokenizer(run.model, run.data, run.distill)
        prepared = prepare_data(run.data, tokenizer, seed=args.seed)
    if prepared.train is None:
        raise DataError(
            "There are no training data; give train_file or a data set with a training split."
        )
    _fit_evaluation(run, prepared)
    callbacks = _callbacks(run, prepared)
    model = build_model(run.model, run.data, prepared, tokenizer, run.distill)
    _log.info("Data: %s", prepared.text)
    _log.info("Student: %s, %.2f M parameters.", type(model).__name__, _millions(model))
    return _trainer(run, prepared, model, tokenizer, callbacks), prepared


def _evaluate_only(run: Run, folder: str) -> dict[str, float]:
    args = run.training
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="data"):
        # The one it was trained with lies beside it.
        tokenizer = build_tokenizer(
            ModelArguments(tokenizer=run.given.get("tokenizer", folder)), run.data
        )
        prepared = prepare_data(run.data, tokenizer, seed=args.seed)
    if prepared.validation is None:
        raise DataError("There are no validation data to evaluate on; give validation_file.")
    model = load_trained(folder, prepared, run.model.attn_implementation)
    trainer = _trainer(run, prepared, model, tokenizer, [])
    results = plain_metrics(trainer.evaluate())
    if args.process_index == 0:
        text = f"{json.dumps(results, indent=1)}\n"
        write_text(Path(str(args.output_dir)) / EVALUATION, text)
        print(_table(results, prepared, folder))
    return results


def start_logging(run: Run) -> None:
    """Log what happens, in the first process."""
    args = run.training
    first = args.process_index == 0
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("taskdistill").setLevel(logging.INFO if first else logging.WARNING)
    passive = args.log_level == "passive"
    level = logging.WARNING if passive else args.get_process_log_level()
    transformers.logging.set_verbosity(level)


def check_sources(run: Run) -> None:
    """See that everything the run reads is there, before data are tokenised."""
    run.data.check()
    for split, path in run.data.files.items():
        if not os.path.isfile(path):
            raise DataError(f"{split}_file {path!r} does not exist (looked from {os.getcwd()!r}).")
    if run.eval_only is not None:
        read_model_config(run.eval_only)
        return
    CacheOptions.of((run.distill or {}).get("cache"))
    vocabulary = run.model.vocab_file
    if vocabulary is not None and not os.path.isfile(vocabulary):
        raise DataError(f"vocab_file {vocabulary!r} does not exist (from {os.getcwd()!r}).")
    checkpoint = run.training.resume_from_checkpoint
    if checkpoint is not None and not os.path.isdir(checkpoint):
        raise CheckpointError(f"Checkpoint {checkpoint!r} to resume from is no folder.")
    if run.model.model is not None:
        read_model_config(run.model.model)
    for name in teacher_names(run.distill or {}):
        try:
            read_model_config(name)
        except CheckpointError as error:
            raise TeacherError(f"The teacher of distill: {error}") from error


def _fit_evaluation(run: Run, prepared: Prepared) -> None:
    """Evaluate, and choose the best checkpoint, by what the data have."""
    args = run.training
    if prepared.validation is None:
        if "eval_strategy" in run.given or args.load_best_model_at_end:
            raise ConfigError(
                "The run is to be evaluated, but there are no validation data; give "
                "validation_file or validation_split, or set eval_strategy: no."
            )
        args.eval_strategy, args.do_eval = transformers.IntervalStrategy.NO, False
    by_metric = args.load_best_model_at_end or args.save_strategy == "best"
    if by_metric and "metric_for_best_model" not in run.given:
        args.metric_for_best_model = prepared.metric
        args.greater_is_better = prepared.greater_is_better


def _callbacks(run: Run, prepared: Prepared) -> list[Any]:
    if run.distill is None:
        return [ScalarsCallback()]
    model_class = prepared.model_class
    distilling = DistillationCallback.from_config(run.distill, model_class=model_class)
    return [distilling, ScalarsCallback()]


def _trainer(
    run: Run, prepared: Prepared, model: Any, tokenizer: Any, callbacks: list[Any]
) -> Trainer:
    trainer = Trainer(
        model=model,
        args=run.training,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,  # type: ignore[arg-type]
        data_collator=prepared.collator,
        compute_metrics=prepared.compute_metrics,
        preprocess_logits_for_metrics=prepared.preprocess_logits_for_metrics,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    if run.distill is None or run.eval_only is not None:
        # Most encoders take the number of items in a step and do not heed it. The Trainer trusts
        # that they do, and would let a loss grow with accumulated batches and with processes.
        # (Distillation sees to it by itself.)
        trainer.model_accepts_loss_kwargs = False
    return trainer


def _millions(model: Any) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def _table(figures: Mapping[str, float], prepared: Prepared, model: str) -> str:
    width = max((len(name) for name in figures), default=0)
    lines = [f"  {name:<{width}}  {value:.4f}" for name, value in figures.items()]
    return "\n".join(["", f"data: {prepared.text}", f"model: {model}", *lines])
