"""The switches amp, channels_last and compile with every sort of classifier."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config
from switched_runs import SwitchedRuns, combinations

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm import prepare_config

KINDS = ("plain", "kd", "mutual", "one", "byot", "netaug")


def config(tiny_data: Any, kind: str, teacher: dict[str, Any]) -> dict[str, Any]:
    size = (3, tiny_data.size, tiny_data.size)
    models: dict[str, Any] = {
        "mutual": lambda: tiny_data.model("MutualClassifier"),
        "one": lambda: tiny_data.model("OneClassifier", at="layer2", branches=1, size=size),
        "byot": lambda: tiny_data.model(
            "SelfTaughtClassifier", exits=["layer1"], features="layer2", size=size
        ),
        "netaug": lambda: tiny_data.model("AugmentedClassifier", width=(1.0, 2.0), expand_only=0),
    }
    model = models.get(kind, tiny_data.model)()
    made = tiny_data.config(model, task="classification", custom_hooks=[])
    if kind == "kd":
        made["distill"] = dict(
            teacher=dict(teacher),
            pairs=[
                dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, name="kd"),
                dict(student="layer1", loss="Hint", name="hint"),
                dict(student="layer2.1@input", loss="AttentionTransfer", name="at"),
            ],
        )
    return made


@pytest.fixture(scope="module")
def runs(tiny_data: Any, tmp_path_factory: pytest.TempPathFactory) -> SwitchedRuns:
    return SwitchedRuns(tiny_data, tmp_path_factory.mktemp("switches"))


@pytest.fixture(scope="module")
def teacher(tiny_data: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny_data.model(network=tiny_data.network(width=8))
    made = tiny_data.config(model, task="classification", custom_hooks=[])
    tiny_data.train(made, folder / "run")
    entry = dict(default_scope="mmengine", task="classification", model=model)
    return dict(config=entry, checkpoint=str(folder / "run" / "epoch_2.pth"))


@pytest.mark.parametrize(("kind", "switch"), combinations(KINDS, whole="kd", quick=True))
def test_a_run(tiny_data: Any, runs: SwitchedRuns, teacher: dict[str, Any], kind: str, switch: str):
    # Network augmentation measures its statistics anew, which does not go with an average.
    runs.check(kind, config(tiny_data, kind, teacher), switch, average=kind != "netaug")


def test_a_gradient_of_the_image_is_not_compiled(tiny_data: Any, teacher: dict[str, Any]):
    made = config(tiny_data, "kd", teacher)
    made["distill"]["pairs"] = [dict(student="outputs.input_gradient", loss="Hint")]
    made |= dict(compile=True, work_dir="unused", launcher="none")
    with pytest.raises(ConfigError, match="differentiated twice"):
        prepare_config(Config(made))
