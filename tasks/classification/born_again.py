"""Born-again networks: generations of one architecture, each taught by the one before it.

``tools/born_again.py`` is the command line. A generation is a training run like any other, started
as a process of its own, in a folder of its own.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ...core.errors import CheckpointError, ConfigError, DistillError
from ...core.online import ensemble_logits
from ...core.teacher import file_sha256, load_weights
from ..common.commands import make_console, positive, stop_as_by_ctrl_c
from ..common.cost import available_cores
from ..common.demo.jobs import RESULT_FILE, Job, JobQueue, fingerprint
from ..common.demo.progress import Progress
from ..common.files import exclusive, read_json, write_json, write_text
from ..openmm.adapter import adapter_of_scope, task_of
from ..openmm.config import load_config, plain_config
from ..openmm.demo.task import training_run
from ..openmm.teacher import SAFE_GLOBALS

__all__ = [
    "RESULTS_FILE",
    "Generation",
    "evaluate",
    "main",
    "markdown",
    "parse_args",
    "plan",
    "validation_logits",
]

RESULTS_FILE = "born_again.json"
"""File of the work dir with the accuracy of every generation and ensemble; a table is beside it."""

_SETTINGS_FILE = "settings.json"
_METRIC = "accuracy/top1"


@dataclass(frozen=True)
class Generation:
    """One of a line of networks.

    Args:
        number: 0 is the first teacher.
        config: Config that is trained.
        checkpoint: The file that it leaves, or that was given.
        seed: Of its initialisation and its data; None of a teacher that was given.
        job: How it is trained; None of a teacher that was given.
    """

    number: int
    config: str
    checkpoint: Path
    seed: int | None = None
    job: Job | None = None

    @property
    def name(self) -> str:
        """Its folder."""
        return f"gen{self.number}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="born_again.py",
        description="Train generations of one network, each taught by the one before it.",
        epilog="Interrupted, the same command continues where it stopped; with a larger "
        "--generations it goes on from the last one.",
    )
    parser.add_argument(
        "config", help="config with a distill entry: the pairs that every generation learns by"
    )
    parser.add_argument(
        "--generations", type=positive, default=3, help="how many learn from another (default: 3)"
    )
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/CONFIG_born_again")
    parser.add_argument(
        "--seed",
        type=int,
        help="of generation 0; generation k has SEED + k (default: config's)",
    )
    parser.add_argument(
        "--teacher", help="checkpoint of the same network to begin with, instead of training one"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override config entries: key=value ..."
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs in the work dir")
    return parser.parse_args(argv)


def main(root: Path, argv: Sequence[str] | None = None) -> int:
    """Train and evaluate all generations; return the exit status.

    Args:
        root: Folder that holds ``tools``.
        argv: Arguments; those of the process by default.
    """
    args = parse_args(argv)
    stop_as_by_ctrl_c()
    console = make_console()
    words = sys.argv if argv is None else ["tools/born_again.py", *argv]
    try:
        _run(args, root, console)
    except DistillError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = shlex.join(["python", *words])
        print(
            f"\nStopped. The same command continues from the last checkpoint:\n  {command}",
            file=sys.stderr,
        )
        return 130
    return 0


def _run(args: argparse.Namespace, root: Path, console: Console) -> None:
    cfg = load_config(args.config, args.cfg_options)
    name = f"{Path(args.config).stem}_born_again"
    work_dir = Path(args.work_dir or Path("work_dirs") / name).resolve()
    _check(cfg, args.config)
    with exclusive(work_dir) as lock:
        if args.fresh:
            _forget(work_dir)
        line = plan(cfg, args.generations, work_dir, root, args.seed, args.teacher)
        _check_settings(line, work_dir, args.teacher)
        jobs = [generation.job for generation in line if generation.job is not None]
        with Progress(console, "top-1", digits=2) as display:
            # As one of several runs of a comparison, it has a core of them all.
            cores = int(os.environ.get("OMP_NUM_THREADS") or available_cores())
            queue = JobQueue(jobs, 1, cores, display, inherit=(lock,))
            queue.run()
        console.print("Evaluating every generation and the ensembles ...")
        results = evaluate(line, plain_config(cfg))
        write_json(work_dir / RESULTS_FILE, results)
        table = work_dir / RESULTS_FILE.replace(".json", ".md")
        write_text(table, markdown(results))
        write_json(work_dir / RESULT_FILE, {"metrics": _figures(results)})
        console.print(_table(results))
        console.print(f"{table} and {RESULTS_FILE} hold the table.", soft_wrap=True)


def _check(cfg: Config, path: str) -> None:
    """Refuse, before anything is trained, a config that no generation can be made of."""
    if task_of(cfg) != "classification":
        raise ConfigError(f"{path} is no config of task='classification'; this tool needs one.")
    distill = cfg.get("distill")
    if not distill or not distill.get("pairs"):
        raise ConfigError(
            f"{path} has no distill entry with pairs, by which a generation learns from the one "
            "before it. Add distill=dict(pairs=[dict(student='outputs.logits', "
            "loss='SoftCrossEntropy')])."
        )
    if "teachers" in distill:
        raise ConfigError(
            f"{path} has several distill.teachers; a generation has one, the generation before it."
        )
    adapter_of_scope("classification").check_data(cfg)


def plan(
    cfg: Config,
    generations: int,
    work_dir: Path,
    root: Path,
    seed: int | None = None,
    teacher: str | None = None,
) -> list[Generation]:
    """Lay out the line of generations, and write the configs that they are trained with.

    Generation 0 is the plain training of the config, or ``teacher``. Generation k is trained with
    the config's ``distill`` entry and generation k - 1 as its teacher, from an initialisation of
    its own (seed + k), with the whole schedule from the start.

    Args:
        cfg: The config. Of its ``distill.teacher``, options like ``precision`` are kept; config and
            checkpoint are those of the generation before.
        generations: How many learn from another one.
        work_dir: Where ``gen0``, ``gen1``, ... and the configs ``plain.py`` and ``distilled.py``
            lie.
        root: Folder that holds ``tools``.
        seed: Of generation 0; the config's own by default, or else 0.
        teacher: Checkpoint to begin with.

    Returns:
        Generations 0 to ``generations``.

    Raises:
        CheckpointError: If ``teacher`` is no file.
        ConfigError: If the config cannot be trained.
    """
    if seed is None:
        seed = int((cfg.get("randomness") or {}).get("seed") or 0)
    plain, distilled = plain_config(cfg), copy.deepcopy(cfg)
    files = {"plain": work_dir / "plain.py", "distilled": work_dir / "distilled.py"}
    options = {
        key: value
        for key, value in (distilled.distill.get("teacher") or {}).items()
        if key not in ("config", "checkpoint", "network", "ensemble")
    }
    # Which file it is changes from generation to generation; see `links` below.
    distilled.distill.teacher = ConfigDict(options, config=str(files["plain"]), checkpoint=None)
    for key, each in (("plain", plain), ("distilled", distilled)):
        each.pop("work_dir", None)
        _move_preprocessor(each)  # for the teacher, of whose config the model alone is read
        write_text(files[key], each.pretty_text)
    if teacher is None:
        job = _training(files["plain"], "gen0", work_dir, root, seed, {})
        line = [Generation(0, str(files["plain"]), job.checkpoint, seed, job)]
    else:
        path = Path(teacher).expanduser().resolve()
        if not path.is_file():
            raise CheckpointError(
                f"--teacher {teacher!r} does not exist (looked from {os.getcwd()!r}). Give the "
                "checkpoint of a trained network, or leave it out to train one first."
            )
        line = [Generation(0, str(files["plain"]), path)]
    for number in range(1, generations + 1):
        links = {"distill.teacher.checkpoint": str(line[-1].checkpoint)}
        name = f"gen{number}"
        if cache := distilled.distill.get("cache"):  # each generation has a teacher of its own
            links["distill.cache.path"] = os.path.join(cache["path"], name)
        job = _training(files["distilled"], name, work_dir, root, seed + number, links)
        if line[-1].job is not None:
            job = replace(job, needs=(line[-1].name,))
        line.append(Generation(number, job.command[2], job.checkpoint, seed + number, job))
    return line


def _move_preprocessor(cfg: Config) -> None:
    """Put a preprocessor from the top of a config, where the runner looks, into its model."""
    preprocessor = cfg.pop("data_preprocessor", None)
    if preprocessor is not None:
        cfg.model.setdefault("data_preprocessor", preprocessor)


def _training(
    config: Path, name: str, work_dir: Path, root: Path, seed: int, links: Mapping[str, Any]
) -> Job:
    return training_run(
        cfg=load_config(str(config)),
        name=name,
        work_dir=work_dir / name,
        seed=seed,
        root=root,
        metric=_METRIC,
        links=links,
    )


def _settings(line: Sequence[Generation], teacher: str | None) -> dict[str, Any]:
    """What decides the outcome of all generations, whatever their number."""
    first = line[1].job
    assert first is not None
    start: dict[str, Any] = {"seed": line[0].seed}
    if teacher:
        start = {"teacher": file_sha256(line[0].checkpoint)}
    if line[0].job is not None:
        start["plain"] = line[0].job.signature
    return {"fingerprint": fingerprint({"first": first.signature, **start})}


def _check_settings(line: Sequence[Generation], work_dir: Path, teacher: str | None) -> None:
    """Go on with a work dir only where it holds the same line of generations.

    Raises:
        ConfigError: If it holds another: its networks would be lost.
    """
    ours, path = _settings(line, teacher), work_dir / _SETTINGS_FILE
    theirs = read_json(path)
    if theirs is not None and theirs != ours:
        raise ConfigError(
            f"{work_dir} holds generations of another config, seed or first teacher. Choose "
            "another --work-dir, or give --fresh to delete them and start over."
        )
    write_json(path, ours)


def _forget(work_dir: Path) -> None:
    """Delete what an earlier run of this tool left, and nothing else."""
    for path in work_dir.glob("gen*"):
        if path.is_dir() and path.name[3:].isdecimal():
            shutil.rmtree(path)
    for name in (_SETTINGS_FILE, RESULTS_FILE, RESULTS_FILE.replace(".json", ".md")):
        (work_dir / name).unlink(missing_ok=True)


# -- afterwards ------------------------------------------------------------------------------------


@torch.no_grad()
def validation_logits(cfg: Config, checkpoint: Path | str) -> tuple[Tensor, Tensor]:
    """Ask a trained classifier about every validation image.

    Args:
        cfg: Its plain config; the data are those of ``test_dataloader``, or else of
            ``val_dataloader``.
        checkpoint: Its weights, loaded strictly.

    Returns:
        Logits (N, K) in float32 and labels (N,), on the CPU.

    Raises:
        CheckpointError: If the file cannot be read or is of another architecture.
        ConfigError: If the config has no such data.
    """
    cfg = copy.deepcopy(cfg)
    loader_cfg = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    if not loader_cfg:
        raise ConfigError("The config has no test_dataloader and no val_dataloader to evaluate on.")
    init_default_scope(cfg.get("default_scope") or "mmengine")
    _move_preprocessor(cfg)
    model: Any = MODELS.build(cfg.model)
    load_weights(model, checkpoint, safe_globals=SAFE_GLOBALS)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    loader = Runner.build_dataloader(loader_cfg)
    logits, labels = [], []
    for batch in _batches(loader):
        data = model.data_preprocessor(batch, False)
        logits.append(model(data["inputs"], mode="tensor").float().cpu())
        labels.append(torch.as_tensor(data["data_samples"]).cpu())
    return torch.cat(logits), torch.cat(labels)


def _batches(loader: Any) -> Iterator[Any]:
    yield from loader


def evaluate(line: Sequence[Generation], cfg: Config) -> dict[str, Any]:
    """Measure every generation, and the ensembles of generations 1 to k.

    An ensemble predicts the mean of its members' probabilities. The first teacher is in none, as in
    the paper.

    Args:
        line: The generations, all trained.
        cfg: Their plain config.

    Returns:
        ``generations`` and ``ensembles``, a list of rows each: ``generation`` or ``of`` (the
        numbers of the members), ``top1`` and, from six classes on, ``top5``, in per cent;
        ``checkpoint`` and ``seed`` of a generation.
    """
    answers: list[Tensor] = []
    rows: list[dict[str, Any]] = []
    labels = torch.empty(0)
    for generation in line:
        logits, labels = validation_logits(cfg, generation.checkpoint)
        answers.append(logits)
        rows.append(
            {
                "generation": generation.number,
                **_accuracy(logits, labels),
                "seed": generation.seed,
                "checkpoint": str(generation.checkpoint),
            }
        )
    ensembles = [
        {
            "of": list(range(1, last + 1)),
            **_accuracy(ensemble_logits(answers[1 : last + 1]), labels),
        }
        for last in range(2, len(answers))
    ]
    return {"images": len(labels), "generations": rows, "ensembles": ensembles}


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The last generation's figures, and the largest ensemble's, as a validation calls them."""
    last = results["generations"][-1]
    found = {f"accuracy/{key}": value for key, value in last.items() if key.startswith("top")}
    for row in results["ensembles"][-1:]:
        found["accuracy/ensemble_top1"] = row["top1"]
    return found


def _accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers in per cent."""
    found = {"top1": (logits.argmax(1) == labels).double().mean().item() * 100}
    if logits.shape[1] > 5:
        hits = logits.topk(5, 1).indices == labels[:, None]
        found["top5"] = hits.any(1).double().mean().item() * 100
    return found


def _rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table."""
    figures = [key for key in ("top1", "top5") if key in results["generations"][0]]
    head = ["network", *(f"{key.replace('top', 'top-')} (%)" for key in figures)]
    cells = []
    for row in results["generations"]:
        what = "the first teacher" if row["generation"] == 0 else "taught by the one before"
        name = f"generation {row['generation']} ({what})"
        cells.append([name, *(f"{row[key]:.2f}" for key in figures)])
    for row in results["ensembles"]:
        name = f"ensemble of generations {row['of'][0]} to {row['of'][-1]}"
        cells.append([name, *(f"{row[key]:.2f}" for key in figures)])
    return head, cells


def markdown(results: Mapping[str, Any]) -> str:
    """The table as markdown.

    Args:
        results: From :func:`evaluate`.

    Example:
        >>> rows = [dict(generation=0, top1=70.0), dict(generation=1, top1=72.5)]
        >>> print(markdown(dict(images=100, generations=rows, ensembles=[])))
        | network | top-1 (%) |
        |:--|--:|
        | generation 0 (the first teacher) | 70.00 |
        | generation 1 (taught by the one before) | 72.50 |
        <BLANKLINE>
        On 100 images.
        <BLANKLINE>
    """
    head, cells = _rows(results)
    lines = [f"| {' | '.join(head)} |", f"|:--|{'--:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*lines, "", f"On {results['images']} images.", ""])


def _table(results: Mapping[str, Any]) -> Table:
    head, cells = _rows(results)
    table = Table(title="Born-again networks")
    table.add_column(head[0])
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in cells:
        table.add_row(*row)
    return table
