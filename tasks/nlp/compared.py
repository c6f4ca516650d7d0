"""What ``tools/compare.py`` knows of the configs of ``tools/train_nlp.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from ...core.errors import CheckpointError, ConfigError
from ..common.compare import Cost
from ..common.cost import count_macs, count_parameters
from ..common.demo.jobs import EVALUATION_DIR, Job, fingerprint
from .arguments import parse
from .build import read_model_config
from .demo import NlpConfig, evaluation_command, flags, training_run
from .settings import merge, read_settings

__all__ = ["NlpContender", "parse_options"]


class NlpContender:
    """A config of ``tools/train_nlp.py``.

    Args:
        path: The config file.
        root: Folder that holds ``tools``.
        epochs: Epochs instead of the config's own; its schedules are scaled along.
        given: Keys to change, each as ``key=value``; ``distill.task_weight=0.5`` of a mapping.

    Raises:
        ConfigError: The config cannot be read, or a key is unknown.
    """

    def __init__(
        self, path: Path, root: Path, epochs: int | None = None, given: Sequence[str] = ()
    ) -> None:
        self._root, self._epochs = root, epochs
        self._given = parse_options(given)
        settings = merge(read_settings(str(path)), self._given)
        run = parse(["--config", str(path), *flags(self._given)])
        self._cfg = NlpConfig(path, settings, run)

    @property
    def path(self) -> Path:
        """The config file."""
        return self._cfg.path

    def training(self, name: str, work_dir: Path, seed: int, metric: str) -> Job:
        """Return the run that trains it; see :class:`taskdistill.tasks.common.compare.Contender`.

        Raises:
            ConfigError: It cannot be trained as asked.
        """
        return training_run(
            cfg=self._cfg,
            name=name,
            work_dir=work_dir,
            seed=seed,
            root=self._root,
            metric=metric,
            epochs=self._epochs,
            given=self._given,
        )

    def evaluation(self, name: str, work_dir: Path, checkpoint: Path, metric: str) -> Job:
        """Return the run that validates a trained model.

        Args:
            name: Name of the run.
            work_dir: Its folder.
            checkpoint: Folder of the model.
            metric: Validation figure that it must have; empty for any.

        Raises:
            CheckpointError: There is no model in that folder.
        """
        file = checkpoint / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{name}: {str(checkpoint)!r} is no folder of a trained model; expected one with "
                "config.json in it."
            )
        weights = sorted(checkpoint.glob("*.safetensors")) + sorted(checkpoint.glob("*.bin"))
        about = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
        return Job(
            name=name,
            command=evaluation_command(
                self._cfg.path, checkpoint, work_dir / EVALUATION_DIR, self._root, self._given
            ),
            work_dir=work_dir,
            length=1,
            checkpoint=file,
            metric=metric,
            signature=fingerprint({"config": self._cfg.settings, "files": about}),
        )

    def caution(self) -> str:
        """Nothing: a trained model is evaluated on the validation data."""
        return ""

    def cost(self, checkpoint: Path) -> Cost:
        """Return parameters of a trained model, and multiply-accumulates for its longest text."""
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        try:
            config = read_model_config(str(folder))
            # "BertForSequenceClassification" is what AutoModelForSequenceClassification makes.
            kind = f"AutoModelFor{(config.architectures or [''])[0].partition('For')[2]}"
            # Products of eager attention are counted; those of fused kernels are not all.
            model = getattr(transformers, kind).from_config(config, attn_implementation="eager")
            length = self._cfg.run.data.max_length
            tokens = torch.zeros(1, length, dtype=torch.long)
            batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            macs = count_macs(lambda: model.eval()(**batch))
            return Cost(count_parameters(model), macs, f"one text of {length} tokens")
        except Exception as error:  # whatever a library raises: the table does without
            return Cost(problem=str(error).strip().partition("\n")[0] or type(error).__name__)


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` options, whose keys may lead into a mapping by dots.

    Raises:
        ConfigError: One of them is no ``key=value``.

    Example:
        >>> parse_options(["max_length=64", "distill.task_weight=0.5"])
        {'max_length': 64, 'distill': {'task_weight': 0.5}}
    """
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--cfg-options {text!r}: expected key=value.")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        options = merge(options, nested)
    return options
