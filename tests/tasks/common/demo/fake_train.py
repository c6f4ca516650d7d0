"""Stands in for a training script: writes the files mmengine writes, resumes, can fail or hang."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ITERS = 4

parser = argparse.ArgumentParser()
parser.add_argument("work_dir", type=Path)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seconds", type=float, default=0.0, help="per epoch")
parser.add_argument("--fail-at", type=int, help="end with status 3 in that epoch")
parser.add_argument("--hang-at", type=int, help="sleep for ever in that epoch")
parser.add_argument("--deaf", action="store_true", help="ignore SIGINT")
parser.add_argument("--skip-last-validation", action="store_true")
parser.add_argument("--journal", type=Path, help="file that collects starts and ends")
parser.add_argument("--evaluate", action="store_true")
args = parser.parse_args()

if args.deaf:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def note(text: str) -> None:
    if args.journal:
        with args.journal.open("a") as file:
            file.write(f"{text} {args.work_dir.name} {os.environ['OMP_NUM_THREADS']}\n")


def metrics(epoch: int) -> dict[str, float]:
    return {"quality": 0.1 * epoch}


if args.evaluate:
    folder = args.work_dir / "final" / "20240101_000000"
    folder.mkdir(parents=True)
    (folder / "20240101_000000.json").write_text(json.dumps(metrics(args.epochs)))
    sys.exit()

note("start")
last = args.work_dir / "last_checkpoint"
done = int(last.read_text()) if last.exists() else 0
run = len(list(args.work_dir.glob("*/vis_data")))
scalars = args.work_dir / f"20240101_00000{run}" / "vis_data" / "scalars.json"
scalars.parent.mkdir(parents=True)
with scalars.open("w", buffering=1) as file:
    for epoch in range(done + 1, args.epochs + 1):
        for i in range(1, ITERS + 1):
            step = (epoch - 1) * ITERS + i
            row = {"lr": 0.1, "loss": 1 / step, "epoch": epoch, "iter": step, "step": step}
            file.write(json.dumps(row) + "\n")
            print(f"Epoch(train)  [{epoch}][{i}/{ITERS}]  lr: 1.0e-01", flush=True)
        if args.fail_at == epoch:
            print("ValueError: the trouble is here")
            sys.exit(3)
        if args.hang_at == epoch:
            time.sleep(600)
        time.sleep(args.seconds)
        (args.work_dir / f"epoch_{epoch}.pth").write_text("weights")
        last.write_text(str(epoch))
        if not (args.skip_last_validation and epoch == args.epochs):
            file.write(json.dumps({**metrics(epoch), "step": epoch}) + "\n")
note("end")
