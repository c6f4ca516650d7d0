"""A discriminator comes along, so this loss runs the shared contract here, in its own terms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from taskdistill.core import losses
from taskdistill.core.critics import MapCritic, SelfAttention2d
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    Holistic,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    holistic,
    holistic_critic,
)
from taskdistill.core.recipe import resolve_loss

OBJECTIVES = ("wgan", "lsgan", "vanilla", "hinge")
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
conditional_or_not = pytest.mark.parametrize("conditional", [True, False])


class Linear(nn.Module):
    """Its slope is known: its weight."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape, dtype=torch.float64))

    def forward(self, maps: Tensor) -> Tensor:
        return (maps * self.weight).flatten(1).sum(1)


class Broken(Linear):
    def forward(self, maps: Tensor) -> Tensor:
        raise RuntimeError("broken critic")


def small(channels: int = 8, layers: int = 1) -> MapCritic:
    """A critic in eval mode (no power iterations) whose attention does something."""
    critic = MapCritic(channels, channels=2, layers=layers, attention=(layers,)).eval()
    for module in critic.modules():
        if isinstance(module, SelfAttention2d):
            nn.init.constant_(module.gamma, 0.5)
    return critic


def batch(
    rows: int = 2, size: tuple[int, int] = (9, 8), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, 5 classes, and images of another size."""
    student, teacher = (3 * torch.randn(rows, 5, *size, dtype=dtype) for _ in range(2))
    image = torch.randn(rows, 3, 4 * size[0], 3 * size[1] + 1, dtype=dtype)
    return student.requires_grad_(), teacher, image


def prepared(student: Tensor, image: Tensor | None, **options) -> Holistic:
    loss = Holistic(**{"channels": 4, "conditional": image is not None, **options})
    loss.prepare(student, image)
    return loss


# -- values ----------------------------------------------------------------------------------------


@every_objective
def test_the_students_term_is_a_generators(objective):
    critic, (student, _, image) = small(), batch()
    value = holistic(critic, student, image, objective=objective)
    shrunk = F.interpolate(image, (9, 8), mode="bilinear", antialias=True)
    scores = critic(torch.cat([student.softmax(1), shrunk], 1))
    torch.testing.assert_close(value, generator_loss(scores, objective=objective))
    if objective == "wgan":
        torch.testing.assert_close(value, -scores.mean())


@every_objective
@conditional_or_not
def test_the_critics_is_a_discriminators_with_the_penalty(objective, conditional: bool):
    student, teacher, image = batch()
    critic = small(8 if conditional else 5)
    image = F.interpolate(image, (9, 8)) if conditional else None

    def score(maps: Tensor, condition: Tensor | None = None) -> Tensor:
        return critic(maps if condition is None else torch.cat([maps, condition], 1))

    real, fake = teacher.softmax(1), student.softmax(1)
    scores = score(real, image), score(fake, image)
    torch.manual_seed(3)
    slope = gradient_penalty(score, real, fake, condition=image)
    torch.manual_seed(3)
    found = holistic_critic(critic, student, teacher, image, objective=objective, penalty=7.0)
    expected = discriminator_loss(*scores, objective=objective) + 7 * slope
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["penalty"], slope.detach())
    torch.testing.assert_close(found["margin"], (scores[0].mean() - scores[1].mean()).detach())
    assert list(found) == ["loss", "penalty", "margin"]
    assert not found["penalty"].requires_grad and not found["margin"].requires_grad


@conditional_or_not
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_penalty_of_a_linear_critic_is_exact(conditional: bool, scale: float):
    """Its slope along the map is its weight there; that along the image does not count."""
    student, teacher, image = batch(4, dtype=torch.float64)
    critic = Linear(8 if conditional else 5, 9, 8)
    with torch.no_grad():
        critic.weight.mul_(scale)
    weight = critic.weight[:5]
    expected = 10 * (weight.norm() - 1).square()
    given = image if conditional else None
    found = holistic_critic(critic, student, teacher, given)
    without = holistic_critic(critic, student, teacher, given, penalty=0.0)
    assert 10 * found["penalty"].item() == pytest.approx(expected.item(), rel=1e-6)
    difference = ((teacher.softmax(1) - student.softmax(1)) * weight).flatten(1).sum(1).mean()
    assert found["margin"].item() == pytest.approx(difference.item(), rel=1e-6)
    assert without["loss"].item() == pytest.approx(-difference.item(), rel=1e-6)
    assert without["penalty"].item() == 0.0
    torch.testing.assert_close(found["loss"], without["loss"] + expected)
    (slope,) = torch.autograd.grad(found["loss"], critic.weight)
    (of_rest,) = torch.autograd.grad(without["loss"], critic.weight)
    (of_penalty,) = torch.autograd.grad(expected, critic.weight)
    torch.testing.assert_close(slope, of_rest + of_penalty, rtol=1e-6, atol=1e-9)


def test_without_a_penalty_the_critic_is_run_once():
    student, teacher, _ = batch()
    critic, runs = small(5), []
    critic.register_forward_hook(lambda *_: runs.append(1))
    holistic_critic(critic, student, teacher, penalty=0.0)
    assert len(runs) == 1
    holistic_critic(critic, student, teacher)
    assert len(runs) == 3


def test_scores_and_penalty_are_of_one_critic():
    """In training mode the weights change with every forward, by the spectral norm's iteration."""
    student, teacher, _ = batch()
    critic = small(5).train()
    convolution = critic.body[0]
    seen = []
    convolution.register_forward_hook(lambda m, *_: seen.append(m.weight))
    holistic_critic(critic, student, teacher)
    assert len(seen) == 2 and seen[0] is seen[1]
    assert not parametrize._cache_enabled  # nothing stays behind


@every_objective
def test_the_value_is_the_mean_of_those_of_single_images(objective):
    critic, (student, teacher, image) = small(), batch(3)

    def values(chosen: slice) -> Tensor:
        s, t, i = student[chosen], teacher[chosen], image[chosen]
        found = holistic_critic(critic, s, t, i, objective=objective, penalty=0.0)
        return torch.stack([holistic(critic, s, i, objective=objective), *found.values()])

    single = [values(slice(row, row + 1)) for row in range(3)]
    torch.testing.assert_close(values(slice(None)), torch.stack(single).mean(0))


def test_logits_that_differ_by_a_constant_are_one_map():
    critic, (student, teacher, image) = small(), batch()
    shift = 7 * torch.randn(2, 1, 9, 8)
    torch.testing.assert_close(
        holistic(critic, student + shift, image), holistic(critic, student, image)
    )
    same = holistic_critic(critic, teacher + shift, teacher, image, penalty=0.0)
    assert abs(same["margin"].item()) < 1e-6


def test_the_image_makes_a_difference():
    critic, (student, _, image) = small(), batch()
    assert holistic(critic, student, image) != holistic(critic, student, -image)


# -- who gets a gradient ---------------------------------------------------------------------------


@conditional_or_not
def test_no_gradient_crosses_over(conditional: bool):
    student, teacher, image = batch()
    teacher.requires_grad_()
    image.requires_grad_()
    loss = prepared(student, image if conditional else None)
    assert loss.critic is not None
    before = {n: p.detach().clone() for n, p in loss.named_parameters()}

    loss(student, teacher, image).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in loss.parameters())

    student.grad = None
    loss.critic_step_losses(student, teacher, image)["loss"].backward()
    assert student.grad is None and teacher.grad is None and image.grad is None
    for name, parameter in loss.critic.named_parameters():
        # Attention begins switched off: so far only its switch has something to gain. And the last
        # bias moves both scores alike.
        idle = any(part in name for part in ("query", "key", "value", "score.bias"))
        assert parameter.grad is not None, name
        assert idle or parameter.grad.abs().sum() > 0, name
    assert all(torch.equal(p, before[n]) for n, p in loss.named_parameters())
    assert loss.critic.training


def test_frozen_parameters_stay_frozen_and_trained_ones_trained():
    critic, (student, _, image) = small(), batch()
    frozen = critic.score.weight.requires_grad_(False)
    holistic(critic, student, image)
    assert [n for n, p in critic.named_parameters() if not p.requires_grad] == ["score.weight"]
    assert frozen is critic.score.weight and not critic.training


def test_requires_grad_is_restored_after_an_error():
    critic, (student, _, _) = Broken(5, 9, 8), batch()
    with pytest.raises(RuntimeError, match="broken critic"):
        holistic(critic, student)
    assert critic.weight.requires_grad


def test_the_students_gradient_is_exact():
    student, _, image = batch(size=(5, 4), dtype=torch.float64)
    for critic in (small().double(), small(layers=2).double()):
        assert torch.autograd.gradcheck(lambda s, c=critic: holistic(c, s, image), (student,))


def test_the_critics_gradient_is_exact():
    student, teacher, image = batch(size=(5, 4), dtype=torch.float64)
    critic = small().double()
    named = dict(critic.named_parameters())

    class Swapped(nn.Module):
        def __init__(self, parameters: dict[str, Tensor]) -> None:
            super().__init__()
            self.swapped = parameters

        def forward(self, maps: Tensor) -> Tensor:
            return torch.func.functional_call(critic, self.swapped, (maps,))

    def loss(*parameters: Tensor) -> Tensor:
        torch.manual_seed(0)  # where between the maps the slope is looked at
        swapped = Swapped(dict(zip(named, parameters, strict=True)))
        return holistic_critic(swapped, student, teacher, image)["loss"]

    values = tuple(p.detach().clone().requires_grad_() for p in named.values())
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


@every_objective
def test_with_gradients_off_there_are_still_values(objective):
    student, teacher, image = batch()
    loss = prepared(student, image, objective=objective).eval()
    torch.manual_seed(1)
    expected = loss.critic_step_losses(student, teacher, image)
    term = loss(student, teacher, image)
    with torch.no_grad():
        torch.manual_seed(1)
        found = loss.critic_step_losses(student, teacher, image)
        assert torch.equal(loss(student, teacher, image), term)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key].detach())


# -- the game --------------------------------------------------------------------------------------


def play(loss: Holistic, student: Tensor, teacher: Tensor, steps: int, lr: float) -> Iterator[dict]:
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr, betas=(0.5, 0.9))
    for _ in range(steps):
        found = loss.critic_step_losses(student, teacher)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        yield {key: value.item() for key, value in found.items()}


def flat_and_sure() -> tuple[Tensor, Tensor]:
    """A student without an opinion, and a teacher that is sure of its own."""
    labels = torch.arange(5).repeat(4, 13)[:, :64].view(4, 8, 8)
    teacher = 8.0 * F.one_hot(labels, 5).movedim(-1, 1).float()
    return 0.1 * torch.randn(4, 5, 8, 8), teacher


def test_the_critic_learns_to_tell_the_two_apart():
    student, teacher = flat_and_sure()
    loss = prepared(student, None)
    history = list(play(loss, student, teacher, steps=20, lr=2e-3))
    assert history[-1]["margin"] > history[0]["margin"] + 0.05
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_student_learns_to_be_taken_for_its_teacher():
    logits, teacher = flat_and_sure()
    loss = prepared(logits, None)
    for _ in play(loss, logits, teacher, steps=20, lr=2e-3):
        pass
    margin = loss.critic_step_losses(logits, teacher)["margin"]
    student = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    assert loss.critic_step_losses(student, teacher)["margin"] < 0.5 * margin


# -- numerics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (33, 17), (65, 65), (64, 97)])
def test_any_size_of_map_and_image(rows: int, size: tuple[int, int]):
    student, teacher, image = batch(rows, size)
    loss = prepared(student, image)
    loss(student, teacher, image).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    found = loss.critic_step_losses(student, teacher, image)
    found["loss"].backward()
    assert all(value.shape == () and torch.isfinite(value) for value in found.values())
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters() if p.grad is not None)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(objective, dtype: torch.dtype):
    """The same map on both sides is the hardest case: then nothing is left to mix."""
    student, _, image = batch()
    sure = (1e4 * student.detach().sign()).to(dtype)
    for ours, theirs in ((sure, -sure), (sure, sure), (torch.zeros_like(sure), sure)):
        ours = ours.clone().requires_grad_()
        loss = prepared(ours, image, objective=objective)
        value = loss(ours, theirs, image)
        value.backward()
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert ours.grad is not None and torch.isfinite(ours.grad).all()
        found = loss.critic_step_losses(ours, theirs, image)
        found["loss"].backward()
        assert torch.isfinite(found["loss"])
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loss.parameters())


def test_finite_where_the_critic_has_no_slope():
    student, teacher, _ = batch(dtype=torch.float64)
    critic = Linear(5, 9, 8)
    nn.init.zeros_(critic.weight)
    found = holistic_critic(critic, student, teacher)
    found["loss"].backward()
    assert found["penalty"].item() == 1.0 and found["margin"].item() == 0.0
    assert critic.weight.grad is not None and torch.isfinite(critic.weight.grad).all()


def test_no_images_give_zero_with_a_graph():
    student, teacher, image = batch(0)
    loss = prepared(student, image)
    value = loss(student, teacher, image)
    value.backward()
    assert value.item() == 0.0 and student.grad is not None
    found = loss.critic_step_losses(student, teacher, image)
    found["loss"].backward()
    assert [value.item() for value in found.values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype):
    student, teacher, image = batch(size=(33, 33))
    loss = prepared(student, image).eval()

    def both() -> list[Tensor]:
        torch.manual_seed(0)
        found = loss.critic_step_losses(student, teacher, image)
        return [loss(student, teacher, image), *found.values()]

    def slopes(term: Tensor, of_critic: Tensor, *_: Tensor) -> list[Tensor]:
        of_parameters = torch.autograd.grad(of_critic, list(loss.parameters()))
        return [*torch.autograd.grad(term, student), *of_parameters]

    expected = both()
    with torch.autocast("cpu", dtype=dtype):
        found = both()
    for a, b in zip([*found, *slopes(*found)], [*expected, *slopes(*expected)], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_maps_are_judged_in_float32(dtype: torch.dtype):
    student, teacher, image = (x.detach().to(dtype) for x in batch())
    loss = prepared(student, image).eval()
    assert {p.dtype for p in loss.parameters()} == {torch.float32}
    value = loss(student, teacher, image)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float(), image.float()))


def test_double_maps_get_a_double_critic():
    student, teacher, image = batch(dtype=torch.float64)
    loss = prepared(student, image)
    assert loss(student, teacher, image).dtype == torch.float64
    assert loss.critic_step_losses(student, teacher, image)["loss"].dtype == torch.float64


@pytest.mark.gpu
def test_on_the_gpu():
    student, teacher, image = batch(size=(65, 65))
    loss = prepared(student, image, penalty=0.0).eval()
    moved = copy.deepcopy(loss).cuda()
    on_gpu = [x.detach().cuda() for x in (student, teacher, image)]
    expected = loss(student, teacher, image)
    torch.testing.assert_close(moved(*on_gpu).cpu(), expected, rtol=1e-2, atol=1e-3)  # TF32
    expected, found = (
        module.critic_step_losses(*tensors)["margin"].cpu()
        for module, tensors in ((loss, (student, teacher, image)), (moved, on_gpu))
    )
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    fresh = prepared(on_gpu[0], on_gpu[2])
    fresh.critic_step_losses(*on_gpu)["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in fresh.parameters())


# -- the module ------------------------------------------------------------------------------------


def test_the_module_equals_the_functions():
    student, teacher, image = batch()
    loss = prepared(student, image, objective="lsgan", penalty=3.0).eval()
    critic = loss.critic
    assert critic is not None
    value = loss(student, teacher, image)
    assert torch.equal(value, holistic(critic, student, image, objective="lsgan"))
    assert torch.equal(value, loss(student, torch.randn_like(teacher), image))
    torch.manual_seed(0)
    found = loss.critic_step_losses(student, teacher, image)
    torch.manual_seed(0)
    expected = holistic_critic(critic, student, teacher, image, objective="lsgan", penalty=3.0)
    assert found == expected


def test_the_critic_is_built_as_asked():
    student, _, image = batch()
    critic = prepared(student, image, channels=6, layers=2, attention=[1]).critic
    assert critic is not None and critic.in_channels == 8 and critic.score.in_channels == 12
    assert [isinstance(m, SelfAttention2d) for m in critic.body] == [False, False, True, False,
                                                                      False]  # fmt: skip
    unconditional = Holistic(channels=4, conditional=False)
    unconditional.prepare(student, image)  # which it does not look at
    assert unconditional.critic is not None and unconditional.critic.in_channels == 5
    paper = Holistic()
    paper.prepare(torch.zeros(1, 19, 65, 65), torch.zeros(1, 3, 512, 512))
    assert sum(p.numel() for p in paper.parameters()) == 3_191_683 + 3 * 64 * 16


def test_preparing_again_keeps_the_critic():
    student, _, image = batch()
    loss = prepared(student, image)
    critic = loss.critic
    loss.prepare(*(torch.cat([x, x]) for x in (student, image)))
    assert loss.critic is critic
    with pytest.raises(ShapeError, match="for 5 classes and 3 image channels, but got 4 classes"):
        loss.prepare(student[:, :4], image)
    with pytest.raises(ShapeError, match="but got 4 classes and 4 image channels"):
        # As many channels altogether, and yet another meaning.
        loss.prepare(student[:, :4], torch.cat([image, image[:, :1]], 1))
    assert loss.critic is critic


def test_preparing_without_gradients_and_in_eval_mode():
    student, teacher, image = batch()
    with torch.no_grad():
        loss = Holistic(channels=4).eval()
        loss.prepare(student, image)
    assert loss.critic is not None and not loss.critic.training
    assert all(p.requires_grad for p in loss.parameters())
    loss.train()
    assert loss.critic.training
    loss.critic_step_losses(student, teacher, image)["loss"].backward()


def test_state_round_trip():
    student, teacher, image = batch()
    loss, other = prepared(student, image), prepared(student, image)
    loss(student, teacher, image)
    other.load_state_dict(loss.state_dict(), strict=True)
    for _ in range(2):  # in training mode, where the buffers go on alike
        assert torch.equal(loss(student, teacher, image), other(student, teacher, image))
    assert {key.partition(".")[0] for key in loss.state_dict()} == {"critic"}


def test_a_copy_is_independent():
    student, teacher, image = batch()
    loss = prepared(student, image).eval()
    other = copy.deepcopy(loss)
    value = loss(student, teacher, image)
    assert torch.equal(other(student, teacher, image), value)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(loss(student, teacher, image), value)
    assert not list(copy.deepcopy(Holistic()).parameters())


def test_recipes_find_it_by_its_name():
    assert resolve_loss("Holistic") is Holistic
    assert Holistic.adversarial
    assert [n for n in losses.__all__ if getattr(getattr(losses, n), "adversarial", False)] == [
        "Holistic"
    ]
    assert "conditional=False" in repr(Holistic(conditional=False))


# -- errors ----------------------------------------------------------------------------------------


def test_it_has_to_be_prepared():
    student, teacher, image = batch()
    for call in (Holistic().forward, Holistic().critic_step_losses):
        with pytest.raises(DistillError, match="no critic yet. Call prepare"):
            call(student, teacher, image)


def test_missing_images():
    student, teacher, image = batch()
    with pytest.raises(ConfigError, match="got no image. Give it one, or take conditional=False"):
        Holistic().prepare(student)
    loss = prepared(student, image)
    for call in (loss.forward, loss.critic_step_losses):
        with pytest.raises(ConfigError, match="got no image"):
            call(student, teacher)


def test_wrong_shapes_are_named():
    student, teacher, image = batch()
    loss = prepared(student, image)
    for call in (loss.forward, loss.critic_step_losses):
        with pytest.raises(ShapeError, match=r"student \(2, 5, 9, 8\) and teacher \(2, 5, 8, 8\)"):
            call(student, teacher[:, :, :8], image)
        with pytest.raises(ShapeError, match=r"\(2, 5, 9, 8\) are judged by .* \(1, 3, 36, 25\)"):
            call(student, teacher, image[:1])
        with pytest.raises(ShapeError, match=r"got image \(3, 36, 25\)"):
            call(student, teacher, image[0])
        with pytest.raises(ShapeError, match=r"\(B, 8, H, W\), got \((2|4), 6, 9, 8\)"):
            call(student, teacher, image[:, :1])
        with pytest.raises(ShapeError, match=r"\(B, K, H, W\) .* got \(5, 9, 8\)"):
            call(student[0], teacher[0], image)


def test_a_single_class_has_nothing_to_say():
    student, teacher, image = (x[:, :1] for x in batch())
    with pytest.raises(ShapeError, match=r"at least 2 classes, got \(2, 1, 9, 8\).*background"):
        Holistic().prepare(student, image)
    with pytest.raises(ShapeError, match="at least 2 classes"):
        holistic(small(1), student)
    with pytest.raises(ShapeError, match="at least 2 classes"):
        holistic_critic(small(1), student, teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "wgn"}, "objective must be one of .* Did you mean 'wgan'"),
        ({"penalty": -1.0}, "penalty must be a finite number >= 0, got -1.0"),
        ({"penalty": float("nan")}, "penalty must be"),
        ({"attention": (5,)}, "names layers"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
    ],
)
def test_bad_options(options, message: str):
    with pytest.raises(ConfigError, match=message):
        Holistic(**options)
    if "objective" in options:
        with pytest.raises(ConfigError, match=message):
            holistic(small(5), batch()[0], **options)
    if options.keys() & {"objective", "penalty"}:
        with pytest.raises(ConfigError, match=message):
            holistic_critic(small(5), *batch()[:2], **options)


@pytest.mark.parametrize("function", [holistic, holistic_critic])
def test_documented(function):
    text = inspect.getdoc(function) or ""
    for section in (".. math::", "Args:", "Returns:", "Raises:", "Reference:", "Lecture:",
                    "When it helps:", "Example:", ">>> "):  # fmt: skip
        assert section in text
