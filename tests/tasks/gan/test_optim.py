from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from taskdistill.core.errors import ConfigError

ADAM = dict(optimizer=dict(type="Adam", lr=1e-3))


def build(model, **entries):
    cfg = dict(constructor="GanOptimWrapperConstructor", generator=ADAM, discriminator=ADAM)
    return build_optim_wrapper(model, cfg | entries)


def test_each_player_has_its_own_parameters(gan):
    model = gan.build(gan.model("CycleGAN"))
    wrapper = build(model, discriminator=dict(optimizer=dict(type="SGD", lr=0.5)))
    ids = {
        name: {id(p) for group in wrapper[name].param_groups for p in group["params"]}
        for name in ("generator", "discriminator")
    }
    expected = [*model.generator.parameters(), *model.generator_back.parameters()]
    assert ids["generator"] == {id(p) for p in expected}
    assert ids["discriminator"] == {id(p) for p in model.adversary_parameters()}
    assert isinstance(wrapper["discriminator"].optimizer, torch.optim.SGD)
    # The log calls the generator's rate what it is called in plain training.
    assert wrapper.get_lr()["lr"] == [1e-3] and wrapper.get_lr()["discriminator.lr"] == [0.5]


def test_what_stands_beside_the_players_holds_for_both(gan):
    wrapper = build(
        gan.build(gan.model()),
        clip_grad=dict(max_norm=1.0),
        accumulative_counts=2,
        discriminator=dict(ADAM, accumulative_counts=4),
    )
    assert wrapper["generator"].clip_grad_kwargs == {"max_norm": 1.0}
    assert wrapper["generator"]._accumulative_counts == 2
    assert wrapper["discriminator"]._accumulative_counts == 4


def test_the_releases_schedule_to_the_last_digit(gan):
    """lr(e) = lr (1 - max(0, e + 1 - n) / (n_decay + 1)), as the releases step it once an epoch."""
    from pathlib import Path

    from mmengine.registry import PARAM_SCHEDULERS

    base = Path(__file__).parents[3] / "configs/gan/_base_/epochs_100_100.py"
    schedule = dict(Config.fromfile(base).param_scheduler[0])
    wrapper = build(gan.build(gan.model()))["generator"]
    scheduler = PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=wrapper.optimizer))
    for epoch in range(200):
        expected = 1e-3 * (1 - max(0, epoch + 1 - 100) / 101)
        assert wrapper.get_lr()["lr"][0] == pytest.approx(expected, rel=1e-9), epoch
        wrapper.optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (dict(generator=dict(lr=1)), "optim_wrapper.generator has no 'optimizer'"),
        (dict(discriminator=None), "optim_wrapper.discriminator has no 'optimizer'"),
        (dict(descriminator=ADAM), "Did you mean 'discriminator'"),
        (dict(optimizer=ADAM), "has no 'optimizer'"),
    ],
)
def test_what_is_missing_or_misspelt_is_told(gan, entries, words):
    with pytest.raises(ConfigError, match=words):
        build(gan.build(gan.model()), **entries)


def test_it_is_for_translators():
    with pytest.raises(ConfigError, match="got Linear"):
        build(torch.nn.Linear(2, 2))
