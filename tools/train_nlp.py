"""Train a language model from a config, with or without a teacher; flags as in transformers."""

from taskdistill.tasks.nlp.cli import run, train

if __name__ == "__main__":
    run(train)
