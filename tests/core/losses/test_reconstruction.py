from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError
from taskdistill.core.losses import Reconstruction, feature_imitation, reconstruction


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 3, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("norm", "peer"), [("l1", F.l1_loss), ("l2", F.mse_loss), ("smooth_l1", F.smooth_l1_loss)]
)
def test_is_the_mean_over_all_elements(norm, peer, images: Tensor):
    assert reconstruction(*images, norm=norm).item() == pytest.approx(peer(*images).item(), 1e-12)


def test_l2_is_feature_imitation_with_weights_too(images: Tensor):
    weight = torch.rand(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        reconstruction(*images, norm="l2", weight=weight, total=7.0),
        feature_imitation(*images, mask=weight, total=7.0),
    )


def test_l1_gradient_is_the_sign_over_the_number_of_elements(images: Tensor):
    student = images[0].clone().requires_grad_()
    reconstruction(student, images[1]).backward()
    expected = (images[0] - images[1]).sign() / student.numel()
    torch.testing.assert_close(student.grad, expected)


def test_an_unknown_norm_is_told_when_the_module_is_made():
    with pytest.raises(ConfigError, match="smooth_l1"):
        Reconstruction(norm="smooth-l1")  # type: ignore[arg-type]
