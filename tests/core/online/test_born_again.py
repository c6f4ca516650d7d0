from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import kl_div, soft_cross_entropy
from taskdistill.core.online import ensemble_logits


@given(
    count=st.integers(1, 5),
    rows=st.integers(0, 3),
    classes=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_its_softmax_is_the_mean_of_the_probabilities(
    count: int, rows: int, classes: int, seed: int
):
    g = torch.Generator().manual_seed(seed)
    logits = [
        3 * torch.randn(rows, classes, generator=g, dtype=torch.float64) for _ in range(count)
    ]
    mean = sum((each.softmax(1) for each in logits), torch.zeros(rows, classes).double()) / count
    found = ensemble_logits(logits)
    torch.testing.assert_close(found.softmax(1), mean)
    torch.testing.assert_close(found.exp(), mean)  # they are normalised already


def test_its_softmax_of_mean_logits_is_the_geometric_mean():
    logits = list(torch.randn(3, 4, 5, dtype=torch.float64))
    product = torch.stack([each.softmax(1) for each in logits]).prod(0) ** (1 / 3)
    found = ensemble_logits(logits, average="logits").softmax(1)
    torch.testing.assert_close(found, product / product.sum(1, keepdim=True))


def test_the_two_averages_can_disagree_about_the_class():
    """One network is very sure, two lean a little to another class."""
    logits = [torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])]
    assert ensemble_logits(logits, average="logits").argmax().item() == 0
    logits = [torch.tensor([[30.0, 0.0]]), *[torch.tensor([[0.0, 3.0]])] * 2]
    assert ensemble_logits(logits, average="logits").argmax().item() == 0
    assert ensemble_logits(logits).argmax().item() == 1


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_one_network_is_itself(average):
    logits = torch.randn(4, 5)
    torch.testing.assert_close(
        ensemble_logits([logits], average=average).softmax(1), logits.softmax(1)
    )


def test_finite_where_no_network_believes_in_a_class():
    sure = torch.tensor([[1e4, -1e4, -1e4]])
    found = ensemble_logits([sure, sure])
    assert found.isfinite().all() and found.softmax(1)[0, 0] == 1
    half = sure.half().clamp(-6e4, 6e4)
    assert ensemble_logits([half, half]).dtype == torch.float32


def test_autocast_changes_nothing():
    logits = list(torch.randn(2, 4, 5))
    expected = ensemble_logits(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ensemble_logits(logits), expected)


def test_maps_with_the_classes_elsewhere():
    logits = list(torch.randn(2, 3, 4, 5))
    last = ensemble_logits(logits, dim=-1)
    first = ensemble_logits([each.movedim(-1, 1) for each in logits])
    torch.testing.assert_close(last.movedim(-1, 1), first)


def test_the_gradient_reaches_every_network():
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    one, two = (each.requires_grad_() for each in logits)
    assert torch.autograd.gradcheck(lambda a, b: ensemble_logits([a, b]), (one, two))


def test_an_ensemble_of_equals_teaches_like_one_of_them():
    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(8, 10, generator=g) for _ in range(2))
    value = soft_cross_entropy(student, ensemble_logits([teacher] * 3))
    assert value.item() == pytest.approx(5.72695875, rel=1e-6)  # the golden value at T = 1
    assert kl_div(student, ensemble_logits([teacher])).item() == pytest.approx(4.72599459, rel=1e-6)


def test_what_cannot_be_meant():
    one = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="at least one network"):
        ensemble_logits([])
    with pytest.raises(ShapeError, match=r"\(2, 3\), \(3, 3\)"):
        ensemble_logits([one, torch.zeros(3, 3)])
    with pytest.raises(ConfigError, match="Did you mean 'logits'"):
        ensemble_logits([one], average="logit")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="dim=2"):
        ensemble_logits([one], dim=2)
