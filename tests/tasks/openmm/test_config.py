import pytest
from mmengine.hub import get_config

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm.config import (
    critic_options,
    load_config,
    plain_config,
    prepare_config,
)


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


def test_plain_config_keeps_what_its_own_head_needs(tiny):
    """A binned head is ours: the deployed model has to find it."""
    from mmengine.config import Config

    cfg = Config(tiny.config(tiny.model("RetinaNet", type="BinnedRetinaHead")))
    cfg.custom_imports.imports = ["taskdistill.tasks.detection"]
    assert plain_config(cfg).custom_imports.imports == ["taskdistill.tasks.detection"]
    cfg.model.bbox_head.type = "RetinaHead"
    assert "custom_imports" not in plain_config(cfg)


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


HOLISTIC = dict(student="outputs.logits", loss="Holistic", weight=0.1)


def test_without_a_critic_optimizer_and_schedule_stay_the_students(tiny):
    config = tiny.config(distill=tiny.distill())
    cfg = tiny.wrap(config, tiny.folder)
    assert "critic" not in cfg.optim_wrapper
    assert [dict(s) for s in cfg.param_scheduler] == config["param_scheduler"]


def test_a_critic_gets_an_optimizer_and_a_schedule_of_its_own(tiny):
    config = tiny.config(distill=tiny.distill(HOLISTIC))
    cfg = tiny.wrap(config, tiny.folder)
    assert cfg.optim_wrapper.critic.to_dict() == dict(
        steps=1,
        optimizer=dict(type="SGD", lr=4e-4, momentum=0.9, weight_decay=5e-4),
        clip_grad=None,
        accumulative_counts=1,
    )
    assert [dict(s) for s in cfg.param_scheduler.student] == config["param_scheduler"]
    (schedule,) = cfg.param_scheduler.critic
    assert (schedule.type, schedule.power, schedule.end) == ("PolyLR", 0.9, 2)
    assert schedule.by_epoch and schedule.convert_to_iter_based


def test_a_critic_of_iterations_and_one_with_settings(tiny):
    config = tiny.config(distill=tiny.distill(HOLISTIC))
    config["train_cfg"] = dict(type="IterBasedTrainLoop", max_iters=30)
    (schedule,) = tiny.wrap(config, tiny.folder).param_scheduler.critic
    assert schedule.end == 30 and not schedule.by_epoch
    own = dict(
        optimizer=dict(type="Adam", lr=1e-4, betas=(0.0, 0.9)),
        param_scheduler=[dict(type="ConstantLR", factor=0.5)],
        clip_grad=dict(max_norm=1.0),
    )
    cfg = tiny.wrap({**config, "distill": tiny.distill(HOLISTIC, critic=own)}, tiny.folder)
    assert cfg.optim_wrapper.critic.optimizer.type == "Adam"
    assert cfg.optim_wrapper.critic.clip_grad.max_norm == 1.0
    assert cfg.param_scheduler.critic[0].type == "ConstantLR"


@pytest.mark.parametrize(
    ("critic", "said"),
    [
        (dict(optimiser={}), "no 'optimiser'. Did you mean 'optimizer'"),
        (dict(steps=0), "steps is 0; expected 1 or more"),
        (dict(steps=1.5), "steps is 1.5"),
    ],
)
def test_settings_of_a_critic_that_cannot_be_meant(critic, said):
    with pytest.raises(ConfigError, match=said):
        critic_options(dict(critic=critic))


def test_a_preprocessor_at_the_top_is_the_students(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill())
    preprocessor = config["model"]["data_preprocessor"]
    config["data_preprocessor"] = {**preprocessor, "mean": [1.0, 2.0, 3.0]}
    cfg = tiny.wrap(config, tmp_path)
    assert cfg.model.student.data_preprocessor.to_dict() == preprocessor  # its own goes first
    del config["model"]["data_preprocessor"]
    runner = tiny.runner(config, tmp_path)
    assert runner.model.data_preprocessor.mean.flatten().tolist() == [1.0, 2.0, 3.0]
