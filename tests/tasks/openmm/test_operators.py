import pytest
import torch

from taskdistill.tasks.openmm.operators import plain_operators


def test_operators_of_mmcv_are_given_plain_tensors():
    """RoIAlign reads its input as it lies: of another layout it makes something else."""
    ops = pytest.importorskip("mmcv.ops")
    align = ops.RoIAlign(3, 1.0, 2)
    features = torch.randn(1, 5, 8, 8)
    boxes = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])
    expected = align(features, boxes)
    plain_operators(align)
    plain_operators(align)
    assert len(align._forward_pre_hooks) == 1
    laid_out = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(align(laid_out, boxes), expected)
    half = align(features.bfloat16(), boxes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)
