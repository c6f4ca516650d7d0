"""Evaluate a checkpoint of the plain student; arguments as in mmdet's tools."""

from taskdistill.tasks.openmm.cli import run, test

if __name__ == "__main__":
    run(test, resumes=False)
