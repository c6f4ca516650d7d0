import pytest
from mmengine.hub import get_config

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm.config import load_config, plain_config, prepare_config


def test_load_config_merges_options(tiny):
    path = tiny.write(tiny.config())
    cfg = load_config(path, {"train_cfg.max_epochs": 7})
    assert cfg.train_cfg.max_epochs == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist", "looked from"]),
        ("model = dict(", ["cannot be read"]),
        ("lr = 1", ["no 'model'", "inherit"]),
        ("_base_ = 'gone.py'", ["cannot be read", "gone.py"]),
    ],
)
def test_load_config_errors(tmp_path, content, words):
    path = tmp_path / "config.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert all(word in str(error.value) for word in words)


def test_an_option_that_does_not_fit_is_a_config_error(tiny):
    path = tiny.write(tiny.config())
    with pytest.raises(ConfigError, match="--cfg-options"):
        load_config(path, {"param_scheduler.9.begin": 1})


def test_plain_config_is_the_students_own(tiny):
    plain = tiny.config()
    cfg = tiny.wrap(plain, tiny.folder)
    assert cfg.get("distill") is None and cfg.model.type == "GFL"

    from mmengine.config import Config

    with_distill = Config(tiny.config(distill=tiny.distill()))
    with_distill.custom_imports.imports = ["taskdistill.tasks.detection", "tiny_parts"]
    found = plain_config(with_distill)
    assert found.to_dict() == Config(plain).to_dict()
    assert "distill" in with_distill  # what came in is not touched


def test_plain_config_drops_imports_of_taskdistill_alone():
    from mmengine.config import Config

    cfg = Config(dict(model=dict(), custom_imports=dict(imports="taskdistill.tasks.detection")))
    assert "custom_imports" not in plain_config(cfg)


def test_prepare_config_wraps_and_keeps_the_rest(tiny):
    plain = tiny.config()
    plain["optim_wrapper"]["constructor"] = "NameConstructor"
    plain["distill"] = tiny.distill()
    cfg = tiny.wrap(plain, tiny.folder)
    assert cfg.model.type == "DistilledModel" and cfg.model.student.to_dict() == plain["model"]
    assert cfg.optim_wrapper.student_constructor == "NameConstructor"
    assert cfg.train_dataloader.dataset.type == "SeededDataset"
    assert cfg.train_dataloader.dataset.dataset.to_dict() == plain["train_dataloader"]["dataset"]
    assert [hook.type for hook in cfg.custom_hooks] == ["SignalHook", "DistillHook"]
    assert cfg.default_hooks.checkpoint.type == "SafeCheckpointHook"


def test_prepare_config_leaves_a_plain_config_but_for_safe_saving(tiny):
    cfg = tiny.wrap(tiny.config(), tiny.folder)
    assert cfg.model.type == "GFL" and cfg.train_dataloader.dataset.type == "CocoDataset"
    assert cfg.default_hooks.checkpoint.type == "SafeCheckpointHook"


@pytest.mark.parametrize("key", ["default_scope", "optim_wrapper"])
def test_prepare_config_names_what_is_missing(tiny, key):
    config = tiny.config(distill=tiny.distill())
    del config[key]
    with pytest.raises(ConfigError, match=key):
        tiny.wrap(config, tiny.folder)


def test_packaged_configs_are_found_by_name():
    cfg = get_config("taskdistill::detection/demo/distilled.py")
    assert cfg.distill.pairs and cfg.model.type == "GFL"
    assert prepare_config(cfg).model.type == "DistilledModel"
