"""Stands in for a training script of a comparison: logs, resumes, can fail, diverge or hang."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("work_dir", type=Path)
parser.add_argument("--figures", type=json.loads, default={}, help="at the end of the run")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--seconds", type=float, default=0.0, help="after each epoch")
parser.add_argument("--fail-at", type=int, help="end with status 3 in that epoch")
parser.add_argument("--nan", action="store_true", help="log a loss that is no number")
parser.add_argument("--tool", action="store_true", help="write result.json and no log")
parser.add_argument("--evaluate", action="store_true", help="write what a test run writes")
parser.add_argument("--journal", type=Path, required=True, help="collects the starts")
args = parser.parse_args()

with args.journal.open("a") as file:
    file.write(f"{args.work_dir.name}\n")
if args.evaluate:
    folder = args.work_dir / "final" / "20240101_000000"
    folder.mkdir(parents=True)
    (folder / "20240101_000000.json").write_text(json.dumps(args.figures))
    sys.exit()
if args.tool:
    text = json.dumps({"metrics": args.figures, "generations": [0.1, 0.2]})
    (args.work_dir / "result.json").write_text(text)
    sys.exit()

last = args.work_dir / "last_checkpoint"
done = int(last.read_text()) if last.exists() else 0
number = len(list(args.work_dir.glob("*/vis_data")))
scalars = args.work_dir / f"20240101_00000{number}" / "vis_data" / "scalars.json"
scalars.parent.mkdir(parents=True)
with scalars.open("w", buffering=1) as log:
    for epoch in range(done + 1, args.epochs + 1):
        loss = float("nan") if args.nan else 1 / epoch
        log.write(json.dumps({"lr": 0.1, "loss": loss, "epoch": epoch, "step": 10 * epoch}) + "\n")
        if args.fail_at == epoch:
            print("ValueError: the trouble is here")
            sys.exit(3)
        (args.work_dir / f"epoch_{epoch}.pth").write_text("weights")
        last.write_text(str(epoch))
        share = epoch / args.epochs
        row = {key: share * value for key, value in args.figures.items()}
        log.write(json.dumps({**row, "data_time": 0.1, "step": epoch}) + "\n")
        time.sleep(args.seconds)
