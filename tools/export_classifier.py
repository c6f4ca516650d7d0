"""Export a classifier: a bare state dict, ONNX, a torch.export program."""

from taskdistill.tasks.classification.export import main
from taskdistill.tasks.openmm.cli import run

if __name__ == "__main__":
    run(main, resumes=False)
