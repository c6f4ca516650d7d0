"""Measure the early exits of a classifier: accuracy, cost, and what confidence saves."""

from taskdistill.tasks.classification.exits import main
from taskdistill.tasks.openmm.cli import run

if __name__ == "__main__":
    run(main, resumes=False)
