"""Keep what the teachers of a config say of its training data, without training."""

import importlib
import sys

from taskdistill.core.errors import ConfigError, DistillError

# By a config's extension, as of tools/train.py and tools/train_nlp.py.
MM = "taskdistill.tasks.openmm.cache_cli"
NLP = "taskdistill.tasks.nlp.cache_cli"
KINDS = {".py": MM, ".yaml": NLP, ".yml": NLP, ".json": NLP}


def command_of(argv: list[str]) -> str:
    """Return the module whose command line these arguments are of, by the config's extension.

    Raises:
        ConfigError: If configs of both kinds are given.
    """
    names = [argument for argument in argv if "=" not in argument]
    kinds = {KINDS[end] for end in KINDS if any(name.endswith(end) for name in names)}
    if len(kinds) > 1:
        raise ConfigError(
            "Give one config: a .py of tools/train.py, or a .yaml or .json of tools/train_nlp.py."
        )
    return kinds.pop() if kinds else MM


def main(argv: list[str] | None = None) -> int:
    """Build the cache of a config; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        # Imported for its own configs only: one task's packages do for them.
        importlib.import_module(command_of(argv)).main(argv)
    except DistillError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
