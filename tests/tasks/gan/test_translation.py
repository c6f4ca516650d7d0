"""One generator and its discriminator: losses, turns, and what is deployed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, NonFiniteLossError, ShapeError
from taskdistill.tasks.gan.translation import ImageTranslator, Pix2Pix, build_discriminator


class Scale(nn.Module):
    """G(x) = w x, D(x) = sum of v x over channels: gradients that can be written down."""

    in_channels = out_channels = 1

    def __init__(self, channels: int = 1, value: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), value, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight.view(1, -1, 1, 1)).sum(1, keepdim=True)

    def init_weights(self) -> None:
        pass


class Bare(nn.Module):
    """Hands the batch on; the samples have their images already."""

    def forward(self, data: Any, training: bool = False) -> Any:
        return data


class Sample:
    def __init__(self, real: torch.Tensor) -> None:
        self.real = real


X = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 3.0]]]], dtype=torch.float64)
Y = torch.tensor([[[[2.0, 1.0]]], [[[-1.0, 0.5]]]], dtype=torch.float64)


def toy(cls: type = ImageTranslator, channels: int = 1, **options: Any) -> Any:
    return cls(Scale(value=0.5), Scale(channels, 0.25), data_preprocessor=Bare(), **options)


def sgd(model: Any, lr: float = 0.1) -> Any:
    wrapper = dict(optimizer=dict(type="SGD", lr=lr))
    cfg = dict(constructor="GanOptimWrapperConstructor", generator=wrapper, discriminator=wrapper)
    return build_optim_wrapper(model, cfg)


def batch() -> dict[str, Any]:
    return dict(inputs=X, data_samples=[Sample(y) for y in Y])


def by_hand(w: float, v: float, lr: float, lam: float, first: bool) -> tuple[float, float]:
    """One step of both players for LSGAN with an L1 term, on paper."""

    def g_gradient(v: float) -> float:
        fake = w * X
        gan = (2 * (v * fake - 1) * v * X).mean()
        return float(gan + lam * ((fake - Y).sign() * X).mean())

    def d_gradient() -> float:
        fake = w * X
        return float(0.5 * ((2 * (v * Y - 1) * Y).mean() + (2 * (v * fake) * fake).mean()))

    after = v - lr * d_gradient()
    return w - lr * g_gradient(after if first else v), after


@pytest.mark.parametrize("order", ["generator_first", "discriminator_first"])
@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_a_step_of_both_players_by_hand(order, lam):
    model = toy(order=order, reconstruction=lam)
    wrapper = sgd(model)
    w, v = 0.5, 0.25
    for _ in range(3):
        model.train_step(batch(), wrapper)
        w, v = by_hand(w, v, 0.1, lam, order == "discriminator_first")
        assert model.generator.weight.item() == pytest.approx(w, rel=1e-12)
        assert model.discriminator.weight.item() == pytest.approx(v, rel=1e-12)
    assert by_hand(0.5, 0.25, 0.1, 0.0, True) != by_hand(0.5, 0.25, 0.1, 0.0, False)


@pytest.mark.parametrize("objective", ["vanilla", "lsgan", "hinge"])
def test_losses_are_the_objectives_of_common_code(objective):
    model = toy(objective=objective, reconstruction=2.0)
    fake, real = 0.5 * X * 0.25, Y * 0.25
    if objective == "vanilla":
        ones = torch.ones_like(fake)
        gan = F.binary_cross_entropy_with_logits(fake, ones)
        d = F.binary_cross_entropy_with_logits(real, ones)
        d = (d + F.binary_cross_entropy_with_logits(fake, ones * 0)) / 2
    elif objective == "lsgan":
        gan = F.mse_loss(fake, torch.ones_like(fake))
        d = (F.mse_loss(real, torch.ones_like(real)) + fake.square().mean()) / 2
    else:
        gan = -fake.mean()
        d = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    losses = model(**batch(), mode="loss")
    torch.testing.assert_close(losses["loss_G_gan"], gan)
    torch.testing.assert_close(losses["loss_G_recon"], 2 * F.l1_loss(0.5 * X, Y))
    torch.testing.assert_close(model.discriminator_losses()["loss_D"], d)


def test_a_conditional_discriminator_sees_the_source_too():
    model = toy(Pix2Pix, channels=2)
    with torch.no_grad():
        model.discriminator.weight.copy_(torch.tensor([0.25, -0.75]))
    judged = 0.25 * X - 0.75 * 0.5 * X
    losses = model(**batch(), mode="loss")
    expected = F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
    torch.testing.assert_close(losses["loss_G_gan"], expected)
    truth = 0.25 * X - 0.75 * Y
    d = F.binary_cross_entropy_with_logits(truth, torch.ones_like(truth))
    d = (d + F.binary_cross_entropy_with_logits(judged, torch.zeros_like(judged))) / 2
    torch.testing.assert_close(model.discriminator_losses()["loss_D"], d)


def test_no_gradient_of_one_player_is_left_with_the_other(gan):
    model = gan.build(gan.model())
    losses = model(**model.data_preprocessor(gan.data(), True), mode="loss")
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.generator.parameters())
    assert all(p.grad is None and p.requires_grad for p in model.discriminator.parameters())
    model.zero_grad(set_to_none=True)
    model.discriminator_losses()["loss_D"].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert any(p.grad is not None for p in model.discriminator.parameters())


@pytest.mark.parametrize("order", ["generator_first", "discriminator_first"])
def test_each_steps_once_and_in_order(gan, order):
    model = gan.build(gan.model(order=order))
    wrapper = sgd(model, 1e-3)
    steps = []
    for name in ("generator", "discriminator"):
        wrapper[name].optimizer.register_step_post_hook(lambda *_, n=name: steps.append(n))
    figures = [model.train_step(gan.data(), wrapper) for _ in range(2)][-1]
    expected = [order.removesuffix("_first")]
    expected += [name for name in ("generator", "discriminator") if name not in expected]
    assert steps == expected * 2
    assert {"loss", "loss_G_gan", "loss_G_recon", "loss_D"} == set(figures)
    torch.testing.assert_close(figures["loss"], figures["loss_G_gan"] + figures["loss_G_recon"])


def test_state_dict_is_the_generator_alone_and_loads_strictly(gan):
    model, other = (gan.build(gan.model(), seed) for seed in (0, 1))
    state = model.state_dict()
    assert {key.split(".")[0] for key in state} == {"generator"}
    before = copy.deepcopy(other.discriminator.state_dict())
    other.load_state_dict(state, strict=True)
    for key, value in other.generator.state_dict().items():
        assert torch.equal(value, state[f"generator.{key}"])
    assert all(torch.equal(v, before[k]) for k, v in other.discriminator.state_dict().items())


def test_a_release_file_loads_unchanged(gan, tmp_path):
    model = gan.build(gan.model())
    bare = {f"module.{k}": v + 1 for k, v in model.generator.state_dict().items()}
    other = gan.build(gan.model(), 1)
    other.load_state_dict(bare, strict=True)
    for key, value in other.generator.state_dict().items():
        assert torch.equal(value, bare[f"module.{key}"])
    del bare["module.model.1.bias"]
    with pytest.raises(RuntimeError, match="generator.model.1.bias"):
        other.load_state_dict(bare, strict=True)


def test_adversaries_go_on_from_their_state(gan):
    first, second = (gan.build(gan.model(pool=3), seed) for seed in (0, 1))
    first(**first.data_preprocessor(gan.data(), True), mode="loss")
    second.load_adversary_state(first.adversary_state())
    for a, b in zip(first.adversary_parameters(), second.adversary_parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(second.pools["fake"].images) == 3


def test_predictions_are_pixels_with_their_truth(gan):
    model = gan.build(gan.model()).eval()
    with torch.no_grad():
        found = model.val_step(gan.data(2))
    assert [f.fake.dtype for f in found] == [torch.uint8] * 2
    data = gan.data(2)
    assert torch.equal(found[1].target, data["data_samples"][1].target)
    assert found[1].metainfo["img_path"] == data["data_samples"][1].metainfo["img_path"]
    image = model(model.data_preprocessor(data, False)["inputs"])
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(found[0].fake, pixels[0])


def test_a_super_network_draws_anew_at_each_step_and_is_whole_in_between(gan):
    model = gan.build(gan.model(generator=gan.super))
    wrapper = sgd(model, 1e-3)
    drawn = []
    model.generator.register_forward_pre_hook(lambda m, _: drawn.append(m.active))
    for _ in range(6):
        model.train_step(gan.data(), wrapper)
    assert model.generator.active == model.generator.largest
    assert len(set(drawn)) > 3


def test_a_loss_that_is_not_finite_ends_the_step_and_spares_the_weights(gan):
    model = gan.build(gan.model())
    wrapper = sgd(model)
    before = copy.deepcopy(model.generator.state_dict())
    with torch.no_grad():
        model.discriminator.model[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="loss_D=nan"):
        model.train_step(gan.data(), wrapper)
    model.order = "generator_first"
    with pytest.raises(NonFiniteLossError, match="loss_G_gan=nan"):
        model.train_step(gan.data(), wrapper)
    assert all(torch.equal(v, before[k]) for k, v in model.generator.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(objective="lsgn"), "Did you mean 'lsgan'"),
        (dict(objective="wgan"), "hinge"),
        (dict(order="d_first"), "generator_first"),
        (dict(reconstruction=-1.0), "reconstruction=-1.0"),
    ],
)
def test_options_that_cannot_be_meant(options, words):
    with pytest.raises(ConfigError, match=words):
        toy(**options)


def test_a_discriminator_of_other_channels_is_refused():
    with pytest.raises(ConfigError, match="in_channels=3.*6 channels"):
        build_discriminator(dict(in_channels=3), 6)


def test_sizes_that_differ_are_told(gan):
    model = toy(reconstruction=1.0)
    with pytest.raises(ShapeError, match=r"\(2, 1, 1, 2\).*\(2, 1, 1, 1\)"):
        model(X, [Sample(y[..., :1]) for y in Y], mode="loss")
    with pytest.raises(ShapeError, match="data_samples is empty"):
        model(X, [], mode="loss")
    with pytest.raises(ConfigError, match="two optimizers"):
        model.train_step(batch(), sgd(model)["generator"])
