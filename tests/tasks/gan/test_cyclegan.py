from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.gan.cyclegan import CycleGAN


def cycle(gan: Any, **options: Any) -> Any:
    return gan.build(gan.model("CycleGAN", **options))


def images(model: Any, gan: Any) -> tuple[torch.Tensor, torch.Tensor]:
    data = model.data_preprocessor(gan.data(), True)
    return data["inputs"], torch.stack([sample.real for sample in data["data_samples"]])


def test_losses_are_those_of_the_paper(gan):
    model = cycle(gan, cycle=(10.0, 5.0), identity=0.5, pool=0)
    a, b = images(model, gan)
    losses = model.losses(a, b)
    there, back = model.generator, model.generator_back
    fake, fake_back = there(a), back(b)
    judged, judged_back = model.discriminator(fake), model.discriminator_back(fake_back)
    expected = dict(
        loss_G_gan=(judged - 1).square().mean(),
        loss_G_gan_back=(judged_back - 1).square().mean(),
        loss_G_cycle=10 * F.l1_loss(back(fake), a),
        loss_G_cycle_back=5 * F.l1_loss(there(fake_back), b),
        loss_G_identity=0.5 * 5 * F.l1_loss(there(b), b),
        loss_G_identity_back=0.5 * 10 * F.l1_loss(back(a), a),
    )
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)
    found = model.discriminator_losses()
    for end, real, scores in (("", b, judged), ("_back", a, judged_back)):
        d = model.get_submodule(f"discriminator{end}")
        value = 0.5 * ((d(real) - 1).square().mean() + scores.square().mean())
        torch.testing.assert_close(found[f"loss_D{end}"], value)


def test_every_player_moves_and_only_the_generators_are_deployed(gan):
    model = cycle(gan)
    settings = dict(optimizer=dict(type="Adam", lr=1e-3))
    wrapper = build_optim_wrapper(
        model,
        dict(constructor="GanOptimWrapperConstructor", generator=settings, discriminator=settings),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        figures = model.train_step(gan.data(), wrapper)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"generator", "generator_back", "discriminator", "discriminator_back"}
    assert {"loss_D", "loss_D_back"} <= set(figures)
    assert {key.split(".")[0] for key in model.state_dict()} == {"generator", "generator_back"}
    assert {len(pool.images) for pool in model.pools.values()} == {8}


def test_discriminators_see_the_history(gan):
    model = cycle(gan, pool=4)
    a, b = images(model, gan)
    model.losses(a, b)
    first = model.pools["fake"].images[0]
    assert torch.equal(model._played[""][1][0], first)
    assert not model._played[""][1].requires_grad


def test_predicts_and_loads_a_release_file_in_one_direction(gan):
    model = cycle(gan)
    back = {k: v.clone() for k, v in model.generator_back.state_dict().items()}
    bare = {k: v + 1 for k, v in model.generator.state_dict().items()}
    model.load_state_dict(bare, strict=True)
    assert all(torch.equal(v, bare[k]) for k, v in model.generator.state_dict().items())
    assert all(torch.equal(v, back[k]) for k, v in model.generator_back.state_dict().items())


def test_channels_of_the_domains_are_exchanged(gan):
    thin = dict(gan.thin, in_channels=1, out_channels=3)
    with pytest.raises(ConfigError, match="A has 1 channels and B 3. Set identity=0"):
        CycleGAN(thin)
    model = CycleGAN(thin, identity=0.0)
    assert model.generator_back(torch.zeros(1, 3, 16, 16)).shape == (1, 1, 16, 16)
    assert model.discriminator.model[0].in_channels == 3
    assert model.discriminator_back.model[0].in_channels == 1


def test_what_cannot_be_meant(gan):
    with pytest.raises(ConfigError, match="weights are not negative"):
        CycleGAN(gan.thin, cycle=(10.0, -1.0))
    model = cycle(gan)
    with pytest.raises(ShapeError, match="2 images of A, but 3 of B"):
        model.losses(torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 16, 16))
