"""How long it takes to read a teacher's answers, and how large they are."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from measure import elapsed

from taskdistill.core.cache import CacheSpec, Field, TeacherCache

__all__ = ["table"]

SAMPLES, BATCH, CLASSES, TOP, SHARD = 50_000, 256, 1000, 10, 10_000
KINDS = {
    f"all {CLASSES} logits in half precision": (Field("logits", (CLASSES,), "float16"),),
    f"top {TOP} and the rest": (
        Field("values", (TOP,), "float16"),
        Field("indices", (TOP,), "int16"),
        Field("tail", (), "float16"),
    ),
}


def table(args: argparse.Namespace, scratch: Path) -> str:
    """Write 50,000 records and read them in shuffled batches of 256.

    Returns:
        A Markdown table.
    """
    lines = [
        "| answers | bytes a sample | microseconds a sample | MiB in all |",
        "|:--|--:|--:|--:|",
    ]
    for number, (name, fields) in enumerate(KINDS.items()):
        spec = CacheSpec(fields, SAMPLES, {"made by": "benchmark"}, SHARD)
        folder = scratch / f"kind{number}"
        cache = TeacherCache(folder, spec)
        for shard in range(cache.shards):
            count = len(cache.positions(shard))
            rows = {
                field.name: torch.randint(100, (count, *field.shape)).to(
                    getattr(torch, field.dtype)
                )
                for field in fields
            }
            cache.write(shard, rows)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
        batches = [part for part in order.split(BATCH) if len(part) == BATCH]
        for part in batches[:10]:  # opens the shards
            cache.read(part)
        # In tens: a read of 256 short records is near the clock's resolution.
        tens = [batches[at : at + 10] for at in range(0, len(batches) - 9, 10)]
        times = [elapsed(lambda: [cache.read(p) for p in ten]) for ten in tens]  # noqa: B023
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        each = statistics.median(times) / (10 * BATCH)
        lines.append(f"| {name} | {size / SAMPLES:.1f} | {1e6 * each:.2f} | {size / 2**20:.1f} |")
    return "\n".join(lines)
