"""Compare a teacher's and a student's generator on any image, in the browser."""

from taskdistill.tasks.gan.page import main
from taskdistill.tasks.openmm.cli import run

if __name__ == "__main__":
    run(main, resumes=False)
