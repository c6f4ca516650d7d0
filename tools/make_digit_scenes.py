"""Compose a set of digit scenes and print its folder."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.progress import Progress

from taskdistill.core.errors import DataError
from taskdistill.tasks.openmm.data.digit_scenes import prepare


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", help="folder of sets (None: $TASKDISTILL_CACHE or ~/.cache)")
    parser.add_argument("--train", type=int, default=1000, help="training scenes")
    parser.add_argument("--val", type=int, default=200, help="validation scenes")
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("Composing", total=args.train + args.val)
            folder = prepare(
                **vars(args), progress=lambda done, total: bar.update(task, completed=done)
            )
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
