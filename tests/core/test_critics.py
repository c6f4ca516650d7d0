from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from taskdistill.core.critics import MapCritic, SelfAttention2d
from taskdistill.core.errors import ConfigError, ShapeError


def attentive(critic: MapCritic) -> MapCritic:
    """With its attention switched on, as training would."""
    for module in critic.modules():
        if isinstance(module, SelfAttention2d):
            nn.init.constant_(module.gamma, 0.5)
    return critic


def small(in_channels: int = 3) -> MapCritic:
    return attentive(MapCritic(in_channels, channels=4))


def seen_shapes(critic: MapCritic, maps: Tensor) -> dict[type, list[tuple[int, ...]]]:
    """The (C, H, W) that convolutions and attention give."""
    found: dict[type, list[tuple[int, ...]]] = {nn.Conv2d: [], SelfAttention2d: []}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        kind = SelfAttention2d if isinstance(module, SelfAttention2d) else nn.Conv2d
        found[kind].append(tuple(output.shape[1:]))

    for module in [*critic.body, critic.score]:
        if isinstance(module, SelfAttention2d | nn.Conv2d):
            module.register_forward_hook(note)
    critic(maps)
    return found


# -- the network of the paper ----------------------------------------------------------------------


def test_it_is_the_network_of_the_authors():
    critic = MapCritic(19)
    sizes = [p.numel() for p in critic.parameters()]
    # Theirs has a batch norm of 19 channels in front, too.
    assert sum(sizes) == 3_191_721 - 2 * 19
    shapes = seen_shapes(critic, torch.rand(1, 19, 65, 65))
    assert shapes[nn.Conv2d] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1, 1, 1),
    ]  # fmt: skip
    assert shapes[SelfAttention2d] == [(256, 8, 8), (512, 4, 4)]
    slopes = {m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    conditional = MapCritic(22)
    assert sum(p.numel() for p in conditional.parameters()) == sum(sizes) + 3 * 64 * 16


def test_every_convolution_but_the_last_has_spectral_norm():
    critic = small().double().eval()
    matrices = []
    for module in critic.body:
        if isinstance(module, nn.Conv2d):
            assert parametrize.is_parametrized(module, "weight")
            matrices.append(module)
    assert len(matrices) == 4
    assert not parametrize.is_parametrized(critic.score)
    nn.init.normal_(matrices[0].parametrizations.weight.original, std=7.0)
    critic.train()
    for _ in range(50):  # a power iteration each
        critic(torch.rand(1, 3, 64, 64, dtype=torch.float64))
    critic.eval()
    for module in matrices:
        largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
        assert largest.item() == pytest.approx(1.0, abs=1e-3)


def test_other_depths_and_places_of_attention():
    critic = MapCritic(5, channels=8, layers=2, attention=[1])
    shapes = seen_shapes(critic, torch.rand(1, 5, 16, 16))
    assert shapes[nn.Conv2d] == [(8, 8, 8), (16, 4, 4), (1, 1, 1)]
    assert shapes[SelfAttention2d] == [(8, 8, 8)]
    without = MapCritic(5, channels=8, layers=2, attention=())
    assert not any(isinstance(m, SelfAttention2d) for m in without.modules())


# -- any size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "size", [(8, 8), (1, 1), (9, 40), (33, 65), (64, 64), (65, 65), (64, 81), (80, 63), (97, 129)]
)
def test_any_size_gives_one_score_a_sample(size: tuple[int, int], batch: int):
    maps = torch.rand(batch, 3, *size, requires_grad=True)
    scores = small()(maps)
    assert scores.shape == (batch,)
    scores.sum().backward()
    assert maps.grad is not None and torch.isfinite(maps.grad).all()
    assert (maps.grad.flatten(1).abs().sum(1) > 0).all()


def test_small_maps_are_enlarged_on_the_sides_that_are_too_small():
    critic = small().eval()
    assert critic.smallest == 64
    maps = torch.rand(2, 3, 20, 70)
    enlarged = F.interpolate(maps, (64, 70), mode="bilinear", align_corners=False)
    assert torch.equal(critic(maps), critic(enlarged))


def test_the_score_of_a_large_map_is_the_mean_of_its_windows():
    critic = small().eval()
    maps = torch.rand(2, 3, 97, 129)
    windows = critic.score(critic.body(maps))
    assert windows.shape == (2, 1, 3, 5)
    torch.testing.assert_close(critic(maps), windows.mean((1, 2, 3)))


def test_no_images_no_scores():
    assert small()(torch.rand(0, 3, 65, 65)).shape == (0,)


def test_the_score_of_a_sample_is_its_own():
    critic = small().eval()
    maps = torch.rand(4, 3, 65, 65)
    scores = critic(maps)
    others = torch.cat([maps[:1], 100 * torch.randn(3, 3, 65, 65)])
    torch.testing.assert_close(critic(others)[0], scores[0])
    torch.testing.assert_close(critic(maps[:1])[0], scores[0])
    torch.testing.assert_close(critic(maps.flip(0)), scores.flip(0))


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_second_derivatives_reach_every_parameter(batch: int):
    critic = small()
    maps = torch.rand(batch, 3, 33, 33, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(maps).sum(), maps, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in critic.named_parameters():
        if name.endswith("bias") and parameter.grad is None:
            continue  # which moves the score, but not its slope where the network is linear
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_are_exact_twice():
    critic = attentive(MapCritic(2, channels=2, layers=1, attention=(1,))).double().eval()
    maps = torch.rand(2, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(critic, (maps,))
    assert torch.autograd.gradgradcheck(critic, (maps,))


def test_state_round_trip():
    critic, other = small(), small()
    maps = torch.rand(2, 3, 65, 65)
    critic(maps)  # moves the buffers of the spectral norm
    state = copy.deepcopy(critic.state_dict())
    other.load_state_dict(state, strict=True)
    for training in (True, False):
        assert torch.equal(other.train(training)(maps), critic.train(training)(maps))
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_copy_is_independent():
    critic = small().eval()
    maps = torch.rand(1, 3, 65, 65)
    before = critic(maps)
    other = copy.deepcopy(critic)
    assert torch.equal(other(maps), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(critic(maps), before) and not torch.equal(other(maps), before)


def test_the_precision_is_that_of_the_critic():
    critic = small().eval()
    maps = torch.rand(1, 3, 65, 65, dtype=torch.bfloat16)
    assert critic(maps).dtype == torch.float32
    assert torch.equal(critic(maps), critic(maps.float()))
    assert critic.double()(maps).dtype == torch.float64


@pytest.mark.gpu
def test_on_the_gpu():
    critic, maps = small(), torch.rand(2, 3, 97, 129)
    moved = copy.deepcopy(critic).cuda()(maps.cuda())
    torch.testing.assert_close(moved.cpu(), critic(maps), rtol=1e-2, atol=1e-3)  # TF32


# -- self-attention --------------------------------------------------------------------------------


def test_new_attention_hands_its_input_on():
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(SelfAttention2d(16)(x), x)


@pytest.mark.parametrize("channels", [4, 16, 64])
def test_attention_equals_the_definition(channels: int):
    layer = SelfAttention2d(channels).double()
    nn.init.constant_(layer.gamma, 0.7)
    assert layer.query.out_channels == layer.key.out_channels == max(1, channels // 8)
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    q, k, v = (f(x).flatten(2).mT for f in (layer.query, layer.key, layer.value))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(layer(x), x + 0.7 * mixed.mT.reshape(x.shape))


def test_attention_knows_no_places():
    """It sees the set of positions: permuted in, permuted out."""
    layer = SelfAttention2d(8)
    nn.init.constant_(layer.gamma, 1.0)
    x, order = torch.randn(2, 8, 1, 12), torch.randperm(12)
    torch.testing.assert_close(layer(x[..., order]), layer(x)[..., order])


# -- errors ----------------------------------------------------------------------------------------


def test_wrong_maps_are_named():
    critic = small(5)
    with pytest.raises(ShapeError, match=r"takes maps \(B, 5, H, W\), got \(2, 3, 8, 8\)"):
        critic(torch.rand(2, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"got \(5, 8, 8\)"):
        critic(torch.rand(5, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"attention": (3, 5)}, r"attention=\(3, 5\) names layers \[5\], but .* 1 to 4"),
        ({"attention": (0,)}, "names layers"),
        ({"layers": 2}, "names layers"),
        ({"slope": -0.1}, "slope must be a finite number >= 0"),
        ({"slope": float("nan")}, "slope must be"),
    ],
)
def test_what_cannot_be_built(options, message: str):
    with pytest.raises(ConfigError, match=message):
        MapCritic(**{"in_channels": 3, **options})


def test_attention_needs_channels():
    with pytest.raises(ConfigError, match="channels must be at least 1"):
        SelfAttention2d(0)
