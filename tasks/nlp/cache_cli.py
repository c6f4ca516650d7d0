"""The command line of ``tools/cache_teacher.py`` for language models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Table

from ...core.errors import ConfigError
from ..common.amounts import size_text, time_text
from ..common.commands import add_cache_options, make_console
from ..common.processes import leave_process_group
from .arguments import parse
from .caching import Forecast, ensure
from .cli import check_sources, make_trainer, start_logging
from .trainer import DistillingTrainer

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> list[Forecast]:
    """Keep what the teachers of a config say of its training data, without training.

    Args:
        argv: ``CONFIG [--dry-run] [--verify]``, and flags as of ``tools/train_nlp.py``, which lie
            over the config; those of the process by default.

    Returns:
        For each teacher, what it takes and what was missing.

    Raises:
        ConfigError: If the config has no ``distill.cache``.
        CacheError: See :func:`.caching.ensure`; with ``--verify`` also if anything is missing
            or damaged.
    """
    parser = argparse.ArgumentParser(
        description="Keep what the teachers of a config say of its training data (distill.cache), "
        "without training. Interrupted, the same command goes on; several processes share the "
        "work.",
        epilog="All other flags are those of tools/train_nlp.py.",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML or JSON file whose distill has a cache")
    add_cache_options(parser)
    options, flags = parser.parse_known_args(argv)
    run = parse(["--config", options.config, *flags])
    if run.eval_only is not None:
        raise ConfigError("--eval_only asks no teacher; leave it out.")
    if not (run.distill or {}).get("cache"):
        raise ConfigError(
            f"Config {options.config!r} has no distill.cache. Add 'cache: {{path: FOLDER}}' to its "
            "distill."
        )
    start_logging(run)
    check_sources(run)
    trainer, _ = make_trainer(run)
    assert isinstance(trainer, DistillingTrainer)  # its config has a distill entry
    found = ensure(trainer, dry_run=options.dry_run, build=not options.verify)
    if run.training.process_index == 0:
        make_console().print(_table(found, "is missing" if options.dry_run else "was missing"))
    del trainer
    leave_process_group()
    return found


def _table(forecasts: Sequence[Forecast], missing: str) -> Table:
    table = Table(title="What the teachers say of the training data")
    for name in ("teacher", "folder"):
        table.add_column(name, overflow="fold")
    for name in ("texts", "of rows", "bytes a text", "size", missing, "time, about"):
        table.add_column(name, justify="right")
    for entry in forecasts:
        table.add_row(
            entry.teacher,
            entry.folder,
            f"{entry.texts:,}",
            f"{entry.rows:,}",
            f"{entry.bytes_total / entry.texts:,.0f}",
            size_text(entry.bytes_total),
            f"{entry.missing:,} of {entry.shards:,} files",
            time_text(entry.seconds),
        )
    return table
