"""Train generations of one network, each taught by the one before it, and measure ensembles."""

import sys
from pathlib import Path

from taskdistill.tasks.classification.born_again import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))
