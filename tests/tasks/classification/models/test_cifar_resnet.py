from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

pytest.importorskip("mmengine")

from mmengine.registry import MODELS  # noqa: E402

from taskdistill.core.errors import CheckpointError, ConfigError  # noqa: E402
from taskdistill.core.taps import Taps  # noqa: E402
from taskdistill.core.teacher import load_weights  # noqa: E402
from taskdistill.tasks.classification.models.cifar_resnet import (  # noqa: E402
    BasicBlock,
    CifarResNet,
    PadShortcut,
)
from taskdistill.tasks.common.cost import count_macs, count_parameters  # noqa: E402


def meta(depth: int, **options) -> CifarResNet:
    with torch.device("meta"):
        return CifarResNet(depth, **options)


@pytest.mark.parametrize(
    ("depth", "parameters"),  # the paper's table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_the_networks_of_the_paper(depth: int, parameters: int):
    net = meta(depth)
    assert count_parameters(net) == parameters
    # 32x32 and 16 channels, 16x16 and 32, 8x8 and 64: every 3x3 convolution costs the same, the
    # first of the second and third stage half.
    blocks = (depth - 2) // 6
    one = 32 * 32 * 16 * 16 * 9
    macs = 32 * 32 * 3 * 16 * 9 + 6 * blocks * one - 2 * (one // 2) + 640
    assert count_macs(lambda: net(torch.empty(1, 3, 32, 32, device="meta"))) == macs


def test_names_are_those_of_the_trained_files():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{entry}" for entry in norm)]
    for stage in (1, 2, 3):
        for layer in ("1", "2"):
            names.append(f"layer{stage}.0.conv{layer}.weight")
            names += [f"layer{stage}.0.bn{layer}.{entry}" for entry in norm]
    names += ["linear.weight", "linear.bias"]
    assert list(meta(8).state_dict()) == names


def test_shortcut_b_has_parameters_where_the_shape_changes():
    plain, projected = meta(14).state_dict(), meta(14, shortcut="B").state_dict()
    added = {n: tuple(v.shape) for n, v in projected.items() if n not in plain}
    weights = {n: shape for n, shape in added.items() if len(shape) == 4}
    assert weights == {
        "layer2.0.shortcut.0.weight": (32, 16, 1, 1),
        "layer3.0.shortcut.0.weight": (64, 32, 1, 1),
    }
    assert {n.rpartition(".")[0] for n in added} - {n.rpartition(".")[0] for n in weights} == {
        "layer2.0.shortcut.1",
        "layer3.0.shortcut.1",
    }


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[
        :, None, None
    ]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("inside", "outside", "stride"), [(4, 4, 1), (4, 7, 2), (3, 8, 1)])
def test_a_block_is_the_definition(shortcut: str, inside: int, outside: int, stride: int):
    block = BasicBlock(inside, outside, stride, shortcut).double()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, inside, 6, 5, dtype=torch.float64)
    y = nn.functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    y = normalised(y, block.bn1).relu()
    y = normalised(nn.functional.conv2d(y, block.conv2.weight, padding=1), block.bn2)
    if (inside, stride) == (outside, 1):
        came = x
    elif shortcut == "A":
        came = torch.zeros_like(y)
        before = (outside - inside) // 2
        came[:, before : before + inside] = x[:, :, ::stride, ::stride]
    else:
        assert isinstance(block.shortcut, nn.Sequential)
        conv, norm = block.shortcut
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        came = normalised(nn.functional.conv2d(x, conv.weight, stride=stride), norm)
    torch.testing.assert_close(block(x), (y + came).relu())


def test_zeros_have_no_gradient_and_what_came_in_has():
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PadShortcut(2, 5, 2), x)
    PadShortcut(2, 5, 2)(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]


def test_every_value_can_be_tapped():
    net = CifarResNet(14).eval()
    names = [name for name, _ in net.named_modules() if name]
    taps = Taps(net, names + ["layer1.1.relu2@input", "layer2@input"])
    with taps.capture() as captured:
        net(torch.randn(2, 3, 16, 16))
    assert not captured.mutated()
    assert set(captured.counts().values()) == {1}
    (before,), (after,) = captured.tensors("layer1.1.relu2@input"), captured.tensors("layer1")
    assert before.min() < 0
    torch.testing.assert_close(before.relu(), after)
    assert captured.tensors("layer2@input")[0] is after
    # The sum of the branch and of what came in: after stage 1's first block, both have 16 channels.
    (branch,), (came,) = captured.tensors("layer1.1.bn2"), captured.tensors("layer1.0")
    torch.testing.assert_close(branch + came, before)
    assert captured.tensors("pool")[0].shape == (2, 64, 1, 1)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_it_is_traceable(shortcut: str):
    net = CifarResNet(8, shortcut=shortcut)
    traced = fx.symbolic_trace(net)
    images = torch.randn(2, 3, 9, 8)
    net.eval(), traced.eval()
    torch.testing.assert_close(traced(images), net(images))


@settings(max_examples=10)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    classes=st.integers(1, 12),
    widths=st.tuples(st.integers(1, 4), st.integers(4, 6), st.integers(6, 9)),
    shortcut=st.sampled_from(["A", "B"]),
)
def test_any_images(height, width, channels, classes, widths, shortcut):
    net = CifarResNet(8, classes, shortcut, widths, channels).eval()
    logits = net(torch.randn(2, channels, height, width))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


def test_it_is_built_by_name():
    net = MODELS.build(dict(type="CifarResNet", depth=8, num_classes=3))
    assert isinstance(net, CifarResNet) and net.linear.out_features == 3


def test_two_networks_begin_differently():
    first, second = CifarResNet(8), CifarResNet(8)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    # Kaiming: sqrt(2 / fan in), which keeps the size of what passes through.
    weight = first.get_parameter("layer3.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=18), "6 n \\+ 2.*got 18. The nearest are 14 and 20"),
        (dict(depth=2), "6 n \\+ 2.*got 2. The nearest are 8 and 14"),
        (dict(depth=8, shortcut="C"), "'A'.*'B'.*got 'C'"),
        (dict(depth=8, widths=(16, 32)), "three stages, got \\(16, 32\\)"),
        (dict(depth=8, widths=(16, 32, 0)), "widths\\[2\\] must be an integer >= 1, got 0"),
        (dict(depth=8, widths=(16, 8, 32)), "cannot drop channels \\(16 to 8\\).*'B'"),
        (dict(depth=8, num_classes=0), "num_classes must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_meant(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        CifarResNet(**options)


def test_widths_may_shrink_with_shortcut_b():
    net = CifarResNet(8, widths=(8, 4, 6), shortcut="B")
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def write_old_file(net: nn.Module, path: Path) -> Path:
    """As torch wrote it before batch norms counted, and data-parallel training named it."""
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save({"state_dict": kept, "best_prec1": 91.7}, path)
    return path


def test_an_old_file_of_data_parallel_training_loads_strictly(tmp_path: Path):
    source, net = CifarResNet(8), CifarResNet(8)
    load_weights(net, write_old_file(source, tmp_path / "old.th"))
    found = net.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(found[name], value)


def test_the_file_of_another_depth_does_not_load(tmp_path: Path):
    path = write_old_file(CifarResNet(14), tmp_path / "old.th")
    with pytest.raises(CheckpointError, match="unexpected .30.: layer1.1.conv1.weight"):
        load_weights(CifarResNet(8), path)


# -- real weights ----------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("depth", "file", "accuracy"),
    # On 1000 images of a lossy copy; the whole copy gives 81.0 and 83.2, and one standard error of
    # 1000 images is 1.2.
    [
        (20, "resnet20-12fca82f.th", 80.4),
        pytest.param(56, "resnet56-4bfd9763.th", 82.5, marks=pytest.mark.slow),
    ],
)
def test_trained_files_reach_their_accuracy(depth: int, file: str, accuracy: float):
    folder = Path(os.environ["TASKDISTILL_DATA"])
    net = CifarResNet(depth).eval()
    load_weights(net, folder / "weights" / file)
    with np.load(folder / "cifar10_mini" / "cifar10_mini.npz") as data:
        pixels, labels = data["x_test"], torch.from_numpy(data["y_test"].astype(np.int64))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        found = torch.cat([net(batch).argmax(1) for batch in images.split(250)])
    # A pixel's last bit may tip an image that lies between two classes.
    assert 100 * (found == labels).double().mean().item() == pytest.approx(accuracy, abs=0.3)
