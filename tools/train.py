"""Train a student from a config, with or without a teacher; arguments as in mmdet's tools."""

from taskdistill.tasks.openmm.cli import run, train

if __name__ == "__main__":
    run(train)
