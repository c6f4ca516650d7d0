import sys

import torch

import taskdistill.tasks.openmm.optim as optim


def groups_of(runner):
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    names = {id(p): name for name, p in runner.model.named_parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    return [{**g, "params": [names[id(p)] for p in g["params"]]} for g in groups]


def test_the_adapters_are_one_more_group_with_the_base_settings(tiny, tmp_path):
    groups = groups_of(tiny.runner(tiny.config(distill=tiny.distill()), tmp_path))
    assert len(groups) == 2
    assert all(name.startswith("student.") for name in groups[0]["params"])
    adapters = [
        f"distiller.adapters.neck.{i}.project.{p}" for i in range(3) for p in ("weight", "bias")
    ]
    assert groups[1]["params"] == adapters
    assert groups[1]["lr"] == 1e-3 and groups[1]["weight_decay"] == 0.05


def test_without_adapters_there_is_no_empty_group(tiny, tmp_path):
    pair = dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="main")
    groups = groups_of(tiny.runner(tiny.config(distill=tiny.distill(pair)), tmp_path))
    assert len(groups) == 1


def test_paramwise_settings_go_by_the_students_names(tiny, tmp_path):
    paramwise = dict(
        custom_keys={"backbone.layer1": dict(lr_mult=0.1), "bbox_head": dict(decay_mult=0.0)},
        norm_decay_mult=0.0,
    )
    plain = tiny.config()
    plain["optim_wrapper"]["paramwise_cfg"] = paramwise
    expected = groups_of(tiny.runner(plain, tmp_path / "plain"))
    found = groups_of(tiny.runner({**plain, "distill": tiny.distill()}, tmp_path / "distilled"))
    assert {g["lr"] for g in expected} == {1e-3, 1e-4}
    students = [g for g in found if g["params"][0].startswith("student.")]
    assert len(found) == len(students) + 1 == len(expected) + 1
    for ours, theirs in zip(students, expected, strict=True):
        assert [name.removeprefix("student.") for name in ours["params"]] == theirs["params"]
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }


def test_a_layerwise_constructor_sees_the_student_alone(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill())
    config["optim_wrapper"]["constructor"] = "NameConstructor"
    runner = tiny.runner(config, tmp_path)
    groups = groups_of(runner)
    plain = tiny.build(tiny.model())
    seen = sys.modules["tiny_parts"].NameConstructor.seen
    assert seen == [name for name, _ in plain.named_parameters()]
    assert len(groups) == 2


def test_adapters_are_trained(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill(dict(student="neck", loss="FeatureImitation")))
    config["train_cfg"].update(max_epochs=1)
    runner = tiny.runner(config, tmp_path)
    before = {k: v.clone() for k, v in runner.model.distiller.state_dict().items()}
    runner.train()
    after = runner.model.distiller.state_dict()
    assert before and all(not torch.equal(after[k], v) for k, v in before.items())


def test_amp_on_a_cpu_runs_the_student_in_bfloat16(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill())
    config["optim_wrapper"]["type"] = "CpuAmpOptimWrapper"
    config["train_cfg"].update(max_epochs=1)
    runner = tiny.runner(config, tmp_path)
    seen = set()
    model = runner.model
    for part in (model.student, model.distiller.teachers["teacher"].network):
        part.backbone.layer1[0].conv1.register_forward_hook(
            lambda m, i, out: seen.add((out.dtype, torch.is_grad_enabled()))
        )
    assert isinstance(runner.build_optim_wrapper(runner.optim_wrapper), optim.CpuAmpOptimWrapper)
    runner.train()
    # The teacher's precision is its own.
    assert (torch.bfloat16, True) in seen and (torch.float32, False) in seen
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(
        torch.isfinite(torch.tensor(scalar.data[0])).all()
        for key, scalar in runner.message_hub.log_scalars.items()
        if "loss" in key
    )
