"""The command lines of ``tools/train.py`` and ``tools/test.py``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from mmengine.config import Config, ConfigDict, DictAction

from ...core.errors import CheckpointError, ConfigError, DistillError
from ..common.processes import leave_process_group
from .adapter import adapter_of_scope, task_of
from .config import load_config, plain_config, prepare_config
from .runner import build_runner, latest_checkpoint

__all__ = ["run", "test", "train"]


def run(command: Callable[[Sequence[str] | None], object], resumes: bool = True) -> None:
    """Run a command line; errors a user can mend end in one message, without a traceback.

    Args:
        command: Takes the arguments; ``None`` for those of the process.
        resumes: Whether an interrupted one is a training that ``--resume`` continues.
    """
    try:
        command(None)
    except DistillError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        how = (
            " The last checkpoint is in the work dir; the same command with --resume continues "
            "from it."
        )
        print(f"\nInterrupted.{how if resumes else ''}", file=sys.stderr, flush=True)
        sys.exit(130)


def train(argv: Sequence[str] | None = None) -> None:
    """Train a config, distilling where it has a ``distill`` entry."""
    parser = _parser("Train a student, with or without a teacher.")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision (float16 on a GPU, bfloat16 on a CPU)"
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="continue from this checkpoint, or without a value from the newest in the work dir "
        "(from the start if there is none)",
    )
    args = parser.parse_args(argv)
    cfg = _read(args)
    if args.amp:
        cfg.amp = cfg.get("amp") or True
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ConfigError("--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.")
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        path = latest_checkpoint(cfg.work_dir) if args.resume == "auto" else args.resume
        if path is not None and not os.path.isfile(path):
            raise CheckpointError(f"Checkpoint {path!r} to resume from does not exist.")
        cfg.resume = path is not None
        if path is not None:
            cfg.load_from = path
    _task_checks(cfg)
    build_runner(prepare_config(cfg)).train()
    if cfg.launcher != "none":
        leave_process_group()


def test(argv: Sequence[str] | None = None) -> None:
    """Evaluate a checkpoint of the plain student."""
    parser = _parser("Evaluate a checkpoint.")
    parser.add_argument("config", help="config file; a distill entry in it is left out")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="save predictions to this .pkl file")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument(
        "--show-dir", help="save pictures of predictions in this folder of the work dir"
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    args = parser.parse_args(argv)
    cfg = plain_config(_read(args))
    for switch in ("amp", "compile"):  # of training, perhaps on another device
        cfg.pop(switch, None)
    if not os.path.isfile(args.checkpoint):
        raise CheckpointError(f"Checkpoint {args.checkpoint!r} does not exist.")
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        hook = cfg.default_hooks.get("visualization")
        if hook is None:
            raise ConfigError("--show needs default_hooks.visualization in the config.")
        hook.update(
            draw=True, show=args.show, **({"test_out_dir": args.show_dir} if args.show_dir else {})
        )
    if args.tta:
        if "tta_model" not in cfg or "tta_pipeline" not in cfg:
            raise ConfigError("--tta needs tta_model and tta_pipeline in the config.")
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if args.out:
        if not args.out.endswith((".pkl", ".pickle")):
            raise ConfigError(f"--out {args.out!r} must end in .pkl.")
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        cfg.test_evaluator = [*evaluators, dict(type="DumpResults", out_file_path=args.out)]
    build_runner(prepare_config(cfg)).test()
    if cfg.launcher != "none":
        leave_process_group()


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override config entries: key=value ..."
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _read(args: argparse.Namespace) -> Config:
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        cfg.work_dir = os.path.join("work_dirs", name)
    return cfg


def _task_checks(cfg: Config) -> None:
    """Let the task look at the data before anything is built."""
    task = task_of(cfg)
    if task is not None:
        adapter_of_scope(task).check_data(cfg)
