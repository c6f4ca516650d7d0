"""The switches by themselves: what they accept, what they do to a config and to a network."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from taskdistill.core.errors import ConfigError
from taskdistill.core.taps import Taps, guard_hooks
from taskdistill.tasks.openmm import speed
from taskdistill.tasks.openmm.optim import CpuAmpOptimWrapper


def wrapper(amp: Any, **options: Any) -> Any:
    cfg = Config(dict(amp=amp, optim_wrapper=dict(type="OptimWrapper", **options)))
    speed.use_amp(cfg)
    return cfg.optim_wrapper


# -- amp -------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("amp", [None, False])
def test_without_the_switch_a_wrapper_stays(amp: Any):
    assert wrapper(amp).to_dict() == dict(type="OptimWrapper")


@pytest.mark.parametrize(
    ("amp", "dtype", "scale"),
    [
        (True, "float16", "dynamic"),
        ("fp16", "float16", "dynamic"),
        ("bf16", "bfloat16", dict(enabled=False)),
    ],
)
@pytest.mark.usefixtures("a_gpu")
def test_on_a_gpu(amp: Any, dtype: str, scale: Any):
    found = wrapper(amp, clip_grad=dict(max_norm=1.0)).to_dict()
    assert found == dict(
        type="AmpOptimWrapper", dtype=dtype, loss_scale=scale, clip_grad=dict(max_norm=1.0)
    )


@pytest.mark.usefixtures("a_gpu")
def test_a_loss_scale_of_the_config_is_kept():
    assert wrapper(True, loss_scale=512.0).loss_scale == 512.0


@pytest.mark.parametrize("amp", [True, "bf16"])
@pytest.mark.usefixtures("no_gpu")
def test_on_a_cpu(amp: Any):
    found = wrapper(amp, loss_scale="dynamic", dtype="float16", accumulative_counts=2).to_dict()
    assert found == dict(type="CpuAmpOptimWrapper", accumulative_counts=2)
    net = nn.Linear(2, 2)
    made = CpuAmpOptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1), accumulative_counts=2)
    with made.optim_context(net):
        assert net(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.usefixtures("no_gpu")
def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="needs a GPU.*amp='bf16'"):
        wrapper("fp16")


@pytest.mark.parametrize("amp", ["bf61", 1, 0, "True", dict()])
def test_other_values(amp: Any):
    with pytest.raises(ConfigError, match="is none of True, False, None, 'bf16', 'fp16'"):
        wrapper(amp)


def test_proposals_are_float32():
    model: Any = nn.Module()
    model.rpn_head = nn.Linear(2, 2)
    speed.make_amp_safe(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.rpn_head(torch.ones(1, 2)).dtype == torch.float32


# -- channels last ---------------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.volume = nn.Conv3d(1, 2, 3)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.normed(self.conv(x)))


def channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_are_laid_out_and_compute_the_same():
    net = Convolutions()
    before, ids = copy.deepcopy(net), [id(p) for p in net.parameters()]
    speed.lay_out(net)
    assert [id(p) for p in net.parameters()] == ids
    for name, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    raw = net.get_parameter("normed.parametrizations.weight.original")
    assert channels_last(net.conv.weight) and channels_last(raw) and channels_last(net.up.weight)
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(image), before(image))
    speed.set_layout(net, torch.contiguous_format)
    assert net.conv.weight.is_contiguous() and raw.is_contiguous()


def test_images_of_a_batch_are_laid_out():
    model: Any = nn.Module()
    model.data_preprocessor = nn.Identity()
    speed.lay_out(model)
    batch = model.data_preprocessor({"inputs": torch.randn(2, 3, 4, 5), "data_samples": None})
    assert channels_last(batch["inputs"]) and batch["inputs"].shape == (2, 3, 4, 5)
    several = {"inputs": torch.randn(2, 2, 3, 4, 5)}
    assert model.data_preprocessor(several)["inputs"].is_contiguous()


def test_checkpoints_hold_plain_tensors_and_the_optimizer_keeps_its_own():
    tensor = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    checkpoint: dict[str, Any] = dict(
        state_dict=dict(a=tensor), distill=dict(b=[tensor], c=3), optimizer=dict(d=tensor)
    )
    speed.PlainLayoutHook().before_save_checkpoint(None, checkpoint)
    a, b = checkpoint["state_dict"]["a"], checkpoint["distill"]["b"][0]
    assert a.is_contiguous() and b.is_contiguous()
    assert torch.equal(a, tensor) and torch.equal(b, tensor)
    assert checkpoint["optimizer"]["d"] is tensor


# -- compile ---------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Detector(nn.Module):
    """Parts that are called with tensors alone, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Block(), Block())
        self.head = Block()
        self.plain = nn.Conv2d(3, 3, 1)
        self.assigner = Assigner()

    def forward(self, image: Tensor) -> Tensor:
        x = self.backbone(image)
        levels = [self.head(level) for level in (x, x[..., ::2, ::2])]
        return self.assigner(levels, object()) + self.plain(x).mean()


class Assigner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, levels: list[Tensor], samples: object) -> Tensor:
        return self.inner(levels[0]).mean() + levels[1].mean()


def test_what_is_called_at_the_outermost_level_with_tensors_alone_is_found():
    net = Detector()
    watch = speed._Watch(net)
    net(torch.randn(1, 3, 8, 8))
    assert list(watch.end()) == ["backbone", "head", "assigner.inner"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_compiled_module_is_tapped_and_compiled_once():
    torch._dynamo.reset()
    guard_hooks()
    net = Detector()
    twin = copy.deepcopy(net)
    for name in ("backbone", "head"):
        speed.compile_module(net.get_submodule(name), name, dict(backend="eager"))
    specs = ["backbone.0.body", "head", "head.body.0@input"]
    taps, expected = Taps(net, specs), Taps(twin, specs)
    frames = []
    for _ in range(4):
        image = torch.randn(2, 3, 8, 8)
        with taps.capture() as seen:
            output = net(image)
        with expected.capture() as reference:
            wanted = twin(image)
        torch.testing.assert_close(output, wanted)
        assert seen.counts() == reference.counts()
        for spec in specs:
            for a, b in zip(seen.tensors(spec), reference.tensors(spec), strict=True):
                torch.testing.assert_close(a, b)
        net(image)  # nobody looks on
        twin(image)
        frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert frames[0] > 0 and frames[1] == frames[-1]
    gradients = [
        torch.autograd.grad(
            torch.stack([t.mean() for t in captured.tensors("head")]).sum(),
            model.get_parameter("backbone.0.body.0.weight"),
        )
        for captured, model in ((seen, net), (reference, twin))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    told: list[str] = []
    monkeypatch.setattr(speed, "print_log", lambda text, *_: told.append(text))
    net = Detector()
    twin = copy.deepcopy(net)
    for name in ("backbone", "head"):
        speed.compile_module(net.get_submodule(name), name, {})
    taps, expected = Taps(net, ["backbone.1", "head"]), Taps(twin, ["backbone.1", "head"])
    for _ in range(2):
        image = torch.randn(2, 3, 8, 8)
        with taps.capture() as seen, expected.capture() as reference:
            torch.testing.assert_close(net(image), twin(image))
        for spec in ("backbone.1", "head"):
            for a, b in zip(seen.tensors(spec), reference.tensors(spec), strict=True):
                torch.testing.assert_close(a, b)
    assert told == []  # no fallback


def test_names_stay_and_copies_are_not_compiled():
    net = Detector()
    names = list(net.state_dict())
    speed.compile_module(net.head, "head", dict(backend="eager"))
    assert list(net.state_dict()) == names
    assert copy.deepcopy(net).head._compiled_call_impl is None


def test_evaluation_is_not_compiled():
    torch._dynamo.reset()
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    net = Detector()
    speed.compile_module(net.head, "head", dict(backend=backend))
    net.eval()(torch.randn(1, 3, 8, 8))
    assert not calls
    net.train()(torch.randn(1, 3, 8, 8))
    assert calls


def test_what_cannot_be_compiled_goes_on_with_one_warning(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    told = []
    monkeypatch.setattr(speed, "print_log", lambda text, logger, level: told.append((text, level)))

    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    net = Detector()
    twin = copy.deepcopy(net)
    speed.compile_module(net.head, "head", dict(backend=backend))
    taps, image = Taps(net, ["head.body"]), torch.randn(1, 3, 8, 8)
    for _ in range(2):
        with taps.capture() as seen:
            torch.testing.assert_close(net(image), twin(image))
        assert seen.counts() == {("head.body", "output"): 2}
    assert len(told) == 1 and told[0][1] == logging.WARNING
    assert "head (Block) cannot be compiled" in told[0][0] and "no compiler here" in told[0][0]


def test_errors_of_the_network_are_its_own():
    torch._dynamo.reset()

    class Faulty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("mine")

    net = Faulty()
    speed.compile_module(net, "faulty", dict(backend="eager"))
    with pytest.raises(ValueError, match="mine"):
        net(torch.ones(1))


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_compile_is_a_switch_or_options(value: Any):
    with pytest.raises(ConfigError, match="expected True, False, or a dict"):
        speed.compile_options(value)


def test_options_of_compile():
    assert speed.compile_options(dict(mode="reduce-overhead")) == dict(mode="reduce-overhead")
    with pytest.raises(ConfigError, match="Did you mean 'dynamic'"):
        speed.compile_options(dict(dynamics=True))
    with pytest.raises(ConfigError, match="Did you mean 'inductor'"):
        speed.compile_options(dict(backend="inductr"))


def test_channels_last_is_a_switch():
    with pytest.raises(ConfigError, match="channels_last='yes'; expected True or False"):
        speed.use_switches(Config(dict(channels_last="yes")))


def test_hooks_of_the_switches():
    cfg = Config(dict(channels_last=True, compile=dict(dynamic=True)))
    speed.use_switches(cfg)
    kinds = [hook["type"] for hook in cfg.custom_hooks]
    assert kinds == ["PlainLayoutHook", "CompileHook"]
    assert cfg.custom_hooks[1]["options"] == dict(dynamic=True)
