"""The command line of ``tools/cache_teacher.py`` for configs of mmengine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from rich.table import Table

from ...core.errors import ConfigError
from ..common.amounts import size_text, time_text
from ..common.commands import add_cache_options, make_console
from ..common.processes import leave_process_group
from .caching import Forecast, ensure
from .cli import _parser, _read, _task_checks
from .config import prepare_config
from .runner import build_runner

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> list[Forecast]:
    """Keep what the teachers of a config say of its training data.

    Args:
        argv: The arguments; ``None`` for those of the process.

    Returns:
        What each teacher's cache takes.

    Raises:
        ConfigError: If the config has no ``distill.cache``.
        CacheError: See :func:`.caching.ensure`.
    """
    parser = _parser(
        "Keep what the teachers of a config say of its training data (distill.cache), without "
        "training. Interrupted, the same command goes on; several processes share the work."
    )
    parser.add_argument("config", help="config file whose distill has cache=dict(path=...)")
    add_cache_options(parser)
    args = parser.parse_args(argv)
    cfg = _read(args)
    if not (cfg.get("distill") or {}).get("cache"):
        raise ConfigError(
            f"Config {args.config!r} has no distill.cache. Add cache=dict(path='FOLDER') to its "
            "distill, or give --cfg-options distill.cache.path=FOLDER."
        )
    _task_checks(cfg)
    # Its hooks belong to training; that some change the data is looked at all the same.
    runner: Any = build_runner(prepare_config(cfg))
    assert runner.train_loop is not None  # built when it is first asked for
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    found = ensure(runner, dry_run=args.dry_run, build=not args.verify)
    if is_main_process():
        make_console().print(_table(found, "is missing" if args.dry_run else "was missing"))
    if cfg.launcher != "none":
        del runner
        leave_process_group()
    return found


def _table(forecasts: Sequence[Forecast], missing: str) -> Table:
    table = Table(title="What the teachers say of the training data")
    for name in ("teacher", "folder"):
        table.add_column(name, overflow="fold")
    for name in ("samples", "views", "bytes a picture", "size", missing, "time, about"):
        table.add_column(name, justify="right")
    for entry in forecasts:
        table.add_row(
            entry.teacher,
            str(entry.folder),
            f"{entry.samples:,}",
            str(entry.views),
            f"{entry.record_bytes:,}",
            size_text(entry.total_bytes),
            f"{entry.missing:,}",
            time_text(entry.seconds),
        )
    return table
