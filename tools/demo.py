"""Train a teacher, a student alone and a student distilled; end with a table and a report."""

from __future__ import annotations

import argparse
import importlib
import io
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

from taskdistill.core.errors import DistillError
from taskdistill.tasks.common.commands import make_console, positive, stop_as_by_ctrl_c

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "bccd": "taskdistill.tasks.detection.demo:BccdTable",
    "bccd_two_stage": "taskdistill.tasks.detection.demo:BccdTwoStageTable",
    "camvid": "taskdistill.tasks.segmentation.demo:CamVidTable",
    "classification": "taskdistill.tasks.classification.demo:ClassificationDemo",
    "detection": "taskdistill.tasks.detection.demo:DetectionDemo",
    "digits_dino": "taskdistill.tasks.detection.demo:DigitsDinoDemo",
    "digits_lad": "taskdistill.tasks.detection.demo:DigitsLadDemo",
    "digits_rtmdet": "taskdistill.tasks.detection.demo:DigitsRTMDetDemo",
    "digits_two_stage": "taskdistill.tasks.detection.demo:DigitsTwoStageDemo",
    "gan": "taskdistill.tasks.gan.demo:GanDemo",
    "maps": "taskdistill.tasks.gan.demo:MapsTable",
    "nlp": "taskdistill.tasks.nlp.demo:NlpDemo",
    "restyle": "taskdistill.tasks.gan.demo:RestyleDemo",
    "segmentation": "taskdistill.tasks.segmentation.demo:SegmentationDemo",
    "sst2": "taskdistill.tasks.nlp.demo:Sst2Table",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted, the same command continues where it stopped.",
    )
    parser.add_argument("--task", choices=sorted(TASKS), default="detection")
    parser.add_argument("--seeds", type=positive, default=1, help="students of each kind")
    parser.add_argument(
        "--work-dir", type=Path, help="logs, checkpoints, report (default: work_dirs/demo/TASK)"
    )
    parser.add_argument(
        "--jobs",
        type=lambda text: None if text == "auto" else positive(text),
        help="training processes at once (default: auto, one a core)",
    )
    parser.add_argument(
        "--epochs", type=positive, help="epochs of every run, instead of the configs' own"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget earlier runs in the work folder"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    args = parse_args(argv)
    stop_as_by_ctrl_c()
    console = make_console()
    command = shlex.join(["python", *(sys.argv if argv is None else ["tools/demo.py", *argv])])
    try:
        # Imported late: they take seconds, which --help and a mistyped option need not wait for.
        # What they print about optional parts is of no use here.
        with redirect_stdout(io.StringIO()):
            from taskdistill.tasks.common.demo import DemoOptions, run_demo

            module, _, name = TASKS[args.task].partition(":")
            task = getattr(importlib.import_module(module), name)()
        options = DemoOptions(
            root=ROOT,
            work_dir=(args.work_dir or Path("work_dirs") / "demo" / args.task).resolve(),
            seeds=args.seeds,
            jobs=args.jobs,
            epochs=args.epochs,
            fresh=args.fresh,
            command=command,
        )
        run_demo(task, options, console)
    except DistillError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nStopped. The same command continues from the last checkpoints:\n  {command}",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
