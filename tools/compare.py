"""Train configs with several seeds and compare them: a table, its figures, and a diagram."""

from __future__ import annotations

import argparse
import importlib
import io
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from taskdistill.core.errors import DistillError
from taskdistill.tasks.common.commands import make_console, positive, stop_as_by_ctrl_c

if TYPE_CHECKING:
    from taskdistill.tasks.common.compare import Contender

ROOT = Path(__file__).resolve().parents[1]
MM = "taskdistill.tasks.openmm.demo.compared:MmContender"
NLP = "taskdistill.tasks.nlp.compared:NlpContender"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted, the same command continues where it stopped. It exits with 1 where a "
        "run failed.",
    )
    parser.add_argument(
        "configs",
        nargs="*",
        metavar="CONFIG",
        help="configs to train (.py of tools/train.py, .yaml or .json of tools/train_nlp.py), "
        "patterns, or folders of them",
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each (default: 3)")
    parser.add_argument(
        "--jobs",
        type=lambda text: None if text == "auto" else positive(text),
        help="training processes at once (default: auto, one a core; one where there is a GPU)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs") / "compare",
        help="folder of the runs and of what comes out (default: work_dirs/compare)",
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        help="validation figures; the first decides (default: the first that all runs have)",
    )
    for way in ("lower", "higher"):
        parser.add_argument(
            f"--{way}-is-better",
            nargs="+",
            action="extend",
            default=[],
            metavar="METRIC",
            help=f"metrics that are better {way}, where their names do not say so",
        )
    parser.add_argument("--names", nargs="+", help="a name for each config, in their order")
    parser.add_argument("--baseline", metavar="NAME", help="compare with this (default: the first)")
    parser.add_argument(
        "--evaluate",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=CONFIG,CHECKPOINT",
        help="checkpoints to evaluate, such as the teacher's",
    )
    parser.add_argument(
        "--gap", metavar="NAME", help="add the share of the gap to this teacher that is recovered"
    )
    parser.add_argument("--epochs", type=positive, help="epochs of every run; schedules scale")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="entries to change in every config",
    )
    parser.add_argument("--title", default="Comparison", help="heading of table and diagram")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs of these names")
    args = parser.parse_args(argv)
    if not args.configs and not args.evaluate:
        parser.error("give at least one config to train, or one to --evaluate")
    return args


def _read(path: Path, args: argparse.Namespace) -> Contender:
    # Imported for its own configs only: one task's packages do for them.
    module, _, name = (MM if path.suffix == ".py" else NLP).partition(":")
    kind = getattr(importlib.import_module(module), name)
    return kind(path, ROOT, epochs=args.epochs, given=args.cfg_options)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; return the exit status."""
    args = parse_args(argv)
    stop_as_by_ctrl_c()
    console = make_console()
    command = shlex.join(["python", *(sys.argv if argv is None else ["tools/compare.py", *argv])])
    try:
        # Imported late: they take seconds, which --help and a mistyped option need not wait for.
        # What they print about optional parts is of no use here.
        with redirect_stdout(io.StringIO()):
            import torch

            from taskdistill.tasks.common import compare

            entries = []
            for text in args.evaluate:
                name, path, checkpoint = compare.split_evaluation(text)
                entries.append(compare.Entry(name, _read(path, args), checkpoint))
            paths = compare.find_configs(args.configs)
            for name, path in zip(compare.name_configs(paths, args.names), paths, strict=True):
                entries.append(compare.Entry(name, _read(path, args)))
        options = compare.CompareOptions(
            out=args.out.resolve(),
            seeds=args.seeds,
            jobs=args.jobs or (1 if torch.cuda.is_available() else None),
            metrics=list(dict.fromkeys(args.metric)),
            lower=args.lower_is_better,
            higher=args.higher_is_better,
            baseline=args.baseline,
            gap=args.gap,
            title=args.title,
            fresh=args.fresh,
            command=command,
        )
        comparison = compare.run_comparison(entries, options, console)
    except DistillError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nStopped. The same command continues from the last checkpoints:\n  {command}",
            file=sys.stderr,
        )
        return 130
    return 1 if comparison.failed else 0


if __name__ == "__main__":
    sys.exit(main())
