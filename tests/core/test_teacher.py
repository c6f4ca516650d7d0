from __future__ import annotations

import copy
import hashlib
import os
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import taskdistill.core.teacher as teacher_module
from taskdistill.core.errors import CheckpointError, ConfigError, TapError, TeacherError
from taskdistill.core.taps import Taps
from taskdistill.core.teacher import (
    FrozenTeacher,
    file_sha256,
    load_weights,
    read_checkpoint,
    state_sha256,
)


class Net(nn.Module):
    """What eval mode matters to, and a count of the calls of the last part."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, classes)
        self.head_calls = 0

    def forward(self, image: Tensor) -> Tensor:
        x = self.dropout(self.stem(image).mean((2, 3)))
        self.head_calls += 1
        return self.head(x)


class Holder(nn.Module):
    """A student that holds its teacher as an attribute."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teacher = teacher


@pytest.fixture
def image() -> Tensor:
    return torch.randn(4, 3, 8, 8)


# -- the contract ----------------------------------------------------------------------------------


def test_eval_mode_and_no_dropout_whatever_was_done_to_the_model(image: Tensor):
    net = Net()
    teacher = FrozenTeacher(net)
    expected = copy.deepcopy(net).eval()(image).detach()
    statistics = copy.deepcopy(net.state_dict())
    for undo in (net.train, net.dropout.train, net.stem.train):
        undo()
        for _ in range(2):
            torch.testing.assert_close(teacher(image), expected, rtol=0, atol=0)
        assert not any(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, statistics[name]), name


def test_train_of_the_module_that_holds_it_does_not_reach_it(image: Tensor):
    holder = Holder(FrozenTeacher(Net()))
    holder.train()
    assert not any(module.training for module in holder.teacher.model.modules())
    assert holder.student.training


def test_no_gradient(image: Tensor):
    net = Net()
    teacher = FrozenTeacher(net)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_(True)  # even then
    output = teacher(image.requires_grad_())
    captured, _ = teacher.observe(["stem.0"], image)
    assert not output.requires_grad
    assert not captured.tensors("stem.0")[0].requires_grad
    assert torch.is_grad_enabled()


def test_nothing_of_it_is_in_the_module_that_holds_it():
    holder = Holder(FrozenTeacher(Net()))
    own = {"student.weight", "student.bias"}
    assert {name for name, _ in holder.named_parameters()} == own
    assert set(holder.state_dict()) == own
    assert not list(holder.buffers())
    assert len(list(holder.modules())) == 2


def test_an_ema_copy_shares_it():
    holder = Holder(FrozenTeacher(Net()))
    ema = torch.optim.swa_utils.AveragedModel(holder)
    assert ema.module.teacher is holder.teacher
    assert ema.module.student is not holder.student
    assert not any("teacher" in name for name in ema.state_dict())


def test_moving_the_holder_does_not_convert_it():
    holder = Holder(FrozenTeacher(Net()))
    holder.double()
    assert holder.teacher.model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("by_keyword", [False, True])
def test_goes_where_the_inputs_are(by_keyword: bool):
    teacher = FrozenTeacher(nn.Linear(2, 3))
    inputs = torch.zeros(1, 2, device="meta")
    output = teacher(input=inputs) if by_keyword else teacher(inputs)
    assert output.device.type == teacher.device.type == "meta"


def test_preprocess_sees_and_replaces_the_inputs(image: Tensor):
    def normalise(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        assert not kwargs
        return (), {"image": (args[0] - 0.5) / 2}

    net = Net()
    output = FrozenTeacher(net, preprocess=normalise)(image)
    torch.testing.assert_close(output, net((image - 0.5) / 2))


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "around", "runs_in"),
    [
        (None, False, torch.float32),
        (None, True, torch.bfloat16),
        ("auto", True, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("fp16", False, torch.float16),
        ("fp16", True, torch.float16),
    ],
)
def test_precision_is_the_teachers_alone_and_float32_comes_back(
    image: Tensor, precision: str | None, around: bool, runs_in: torch.dtype
):
    class Seen(Net):
        def forward(self, image: Tensor) -> Tensor:
            output = super().forward(image)
            self.dtype = output.dtype
            return output

    teacher = FrozenTeacher(Seen(), precision=precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        output = teacher(image)
        captured, observed = teacher.observe(["head"], image)
        beside = nn.Linear(2, 2)(torch.ones(1, 2))
    assert teacher.model.dtype == runs_in
    assert output.dtype == observed.dtype == captured.tensors("head")[0].dtype == torch.float32
    assert teacher.model.head.weight.dtype == torch.float32
    assert beside.dtype == (torch.bfloat16 if around else torch.float32)
    torch.testing.assert_close(output, teacher.model(image), rtol=0.05, atol=0.05)


def test_unknown_precision():
    with pytest.raises(ConfigError, match="'int8'.*fp32.*bf16.*fp16"):
        FrozenTeacher(Net(), precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(memory_format="sideways"), "memory_format 'sideways'.*channels_last"),
        (dict(device="nowhere"), "'nowhere' is no device"),
        (dict(device="cuda:99"), "'cuda:99' is not there"),
    ],
)
def test_other_options_that_cannot_be_meant(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        FrozenTeacher(Net(), **options)


# -- the faster copy -------------------------------------------------------------------------------


class Maps(nn.Module):
    """Convolutions with norms that are not new, an in-place activation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=True)
        self.late = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        self.pooled = self.late(self.act(self.stem(image))).mean((2, 3))
        return self.head(self.pooled)


def prepared(model: nn.Module, image: Tensor, specs: tuple[str, ...] = (), **options: Any):
    teacher = FrozenTeacher(model, **options)
    taps = teacher.taps(specs)
    with taps.capture() as captured:
        model(image)
    taps.copied |= captured.mutated()
    teacher.prepare(lambda: teacher.network, specs, image)
    return teacher


OPTIONS = [
    dict(),
    dict(fold=False),
    dict(precision="bf16"),
    dict(precision="fp16"),
    dict(precision=None),
    dict(memory_format="channels_last"),
    dict(precision="bf16", memory_format="channels_last", compile=dict(backend="eager")),
    dict(compile=dict(backend="aot_eager")),
    dict(device="cpu"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_contract_holds_under_every_option(image: Tensor, options: dict):
    model = Maps()
    before, keys = state_sha256(model), list(model.state_dict())
    specs = ("stem", "late@input", "head")
    teacher = prepared(model, image, specs, **options)
    model.train()  # whatever is done to the model in between
    captured, output = teacher.observe(specs, image)
    assert state_sha256(teacher.model) == before and list(model.state_dict()) == keys
    assert not any(p.requires_grad for p in teacher.network.parameters())
    model.eval()
    with torch.no_grad():
        stem = model.stem(image)
        plain = dict(zip(specs, [stem, stem.relu(), model(image)], strict=True))
    half = options.get("precision") in ("bf16", "fp16")
    slack = dict(rtol=0.05, atol=0.1) if half else dict(rtol=1e-4, atol=1e-4)
    for spec in specs:
        torch.testing.assert_close(captured.tensors(spec)[0], plain[spec], **slack)
    torch.testing.assert_close(output, plain["head"], **slack)
    # A loss may keep it for its backward pass.
    student = torch.randn(4, 5, requires_grad=True)
    nn.functional.mse_loss(student, output).backward()
    (student * output).sum().backward()
    assert all(t.dtype == torch.float32 for t in (output, *captured.tensors("stem")))
    assert copy.deepcopy(Holder(teacher)).teacher is teacher


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(m, nn.ReLU())])
def test_a_compiled_teacher_is_compiled_once(image: Tensor, wrap: Any):
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = wrap(Maps())
    teacher = prepared(model, image, compile=dict(backend=backend))
    assert graphs == []
    for _ in range(3):
        torch.testing.assert_close(teacher(image), model(image), rtol=1e-4, atol=1e-4)
        _, output = teacher.observe((), image)
        torch.testing.assert_close(output, model(image), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


def test_norms_are_folded_but_for_what_is_tapped(image: Tensor):
    assert prepared(Maps(), image).runs_as["folded"] == 2
    assert prepared(Maps(), image, ("stem.0",)).runs_as["folded"] == 1
    assert prepared(Maps(), image, fold=False).runs_as["folded"] == 0


@pytest.mark.parametrize("spec", ["stem.0", "stem.1@input", "stem.0@weight", "late.0@weight"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tap_that_comes_later_reads_the_networks_own(image: Tensor, spec: str, precision: str):
    model = Maps()
    teacher = prepared(model, image, precision=precision, memory_format="channels_last")
    assert teacher.runs_as["folded"] == 2
    captured, output = teacher.observe([spec], image)
    assert teacher.runs_as["folded"] == 1
    with torch.no_grad(), Taps(model, [spec]).capture() as plain:
        expected = model(image)
    slack = dict(rtol=0.05, atol=0.1) if precision == "bf16" else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(captured.tensors(spec)[0], plain.tensors(spec)[0], **slack)
    torch.testing.assert_close(output, expected, **slack)
    if "weight" in spec:
        assert torch.equal(captured.tensors(spec)[0], plain.tensors(spec)[0])


def test_a_later_tap_on_what_is_changed_in_place_is_told(image: Tensor):
    teacher = prepared(Maps(), image)
    for _ in range(2):
        captured, _ = teacher.observe(["stem"], image)
        with pytest.raises(TapError, match="changed in place"):
            captured.tensors("stem")
    # Where the forward ends before that, there is nothing to tell.
    early, _ = teacher.observe(["stem"], image, stop_after={("stem", "output"): 1})
    assert (early.tensors("stem")[0] < 0).any()


def test_two_distillations_of_one_teacher_spoil_nothing_of_each_other(image: Tensor):
    model = Maps()
    teacher = FrozenTeacher(model)
    for specs in (("stem.0",), ()):
        teacher.taps(specs)
        teacher.prepare(lambda: teacher.network, specs, image)
    assert teacher.runs_as["folded"] == 1
    captured, _ = teacher.observe(["stem.0"], image)
    torch.testing.assert_close(captured.tensors("stem.0")[0], model.stem[0](image))


def test_a_teacher_of_which_weights_alone_are_read_is_never_run(image: Tensor):
    model = Maps()
    teacher = FrozenTeacher(model)
    spec = "stem.0@weight"
    alone = {("stem.0", "weight"): 1}
    teacher.taps([spec])
    teacher.prepare(lambda: lambda *_: pytest.fail("was run"), [spec], image, stop_after=alone)
    captured, output = teacher.observe([spec], image, stop_after=alone)
    assert captured.tensors(spec)[0] is model.stem[0].weight and output is None
    assert "never run" in teacher.how


def test_what_the_example_gives_the_lie_is_not_folded(image: Tensor):
    class Skips(Maps):
        """The norm is not the only one that reads its convolution."""

        def forward(self, image: Tensor) -> Tensor:
            raw = self.stem[0](image)  # type: ignore[index]
            return self.head((self.stem[1](raw) + raw).mean((2, 3)))  # type: ignore[index]

    model = Skips()
    teacher = prepared(model, image)
    assert teacher.runs_as["folded"] == 0
    torch.testing.assert_close(teacher(image), model(image))


def test_other_weights_are_not_missed(image: Tensor):
    model, other = Maps(), Maps().eval()
    teacher = prepared(model, image)
    first = teacher.network
    model.load_state_dict(other.state_dict())
    captured, output = teacher.observe(["late"], image, forward=teacher.network)
    torch.testing.assert_close(output, other(image))
    torch.testing.assert_close(captured.tensors("late")[0].mean((2, 3)), other.pooled)
    second = teacher.network
    assert second is not first and second is teacher.network


def test_the_fastest_is_taken_where_nothing_is_pinned(image: Tensor, monkeypatch):
    monkeypatch.delenv("TASKDISTILL_TEACHER")
    offered: list[Any] = []

    def choose(runs: dict) -> tuple:
        offered.extend(runs)
        for run in runs.values():
            run()
        return list(runs)[-1], dict.fromkeys(runs, 0.0)

    monkeypatch.setattr("taskdistill.core.teacher.fastest", choose)
    teacher = prepared(Maps(), image)
    assert len(offered) == 4
    assert teacher.runs_as["precision"] == "bf16"
    assert teacher.runs_as["memory_format"] == "channels_last"
    assert teacher.network.stem[0].weight.dtype == torch.bfloat16  # type: ignore[index]


def test_half_precision_that_says_something_else_is_no_candidate(image: Tensor, monkeypatch):
    class Delicate(Maps):
        """A small difference of large numbers, all of which is lost in eight bits."""

        def forward(self, image: Tensor) -> Tensor:
            x = super().forward(image)
            return (
                self.head.weight.sum() * 0
                + (self.head(torch.full_like(x, 1e4)[:, :1].expand(-1, 8)) + x.mean())
                - self.head(torch.full_like(x, 1e4)[:, :1].expand(-1, 8))
            )

    monkeypatch.delenv("TASKDISTILL_TEACHER")
    monkeypatch.setattr(
        "taskdistill.core.teacher.fastest", lambda runs: (list(runs)[-1], dict.fromkeys(runs, 0.0))
    )
    assert prepared(Delicate(), image).runs_as["precision"] == "fp32"


def test_a_setting_in_which_it_fails_is_told_where_there_is_no_other(image: Tensor, monkeypatch):
    class Views(Maps):
        """Its weight is read in the order of memory."""

        def forward(self, image: Tensor) -> Tensor:
            self.stem[0].weight.view(-1)  # type: ignore[index]
            return super().forward(image)

    with pytest.raises(TeacherError, match="cannot run in fp32, channels-last: it fails"):
        prepared(Views(), image, memory_format="channels_last", fold=False)
    monkeypatch.delenv("TASKDISTILL_TEACHER")
    teacher = prepared(Views(), image, fold=False)
    assert teacher.runs_as["memory_format"] == "contiguous"


def test_a_framework_may_adjust_the_copy(image: Tensor):
    model, given = Maps(), []
    teacher = FrozenTeacher(model)
    teacher.adjust = given.append
    teacher.prepare(lambda: teacher.network, (), image)
    assert given[-1] is teacher.network and model not in given


def test_the_environment_pins_what_is_left_open(image: Tensor, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_TEACHER", "bf16 channels_last")
    assert prepared(Maps(), image).setting == ("bf16", "channels_last")
    assert prepared(Maps(), image, precision="fp32").setting == ("fp32", "channels_last")
    assert prepared(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), image).setting == (
        "bf16",
        "contiguous",
    )


def test_a_network_that_cannot_be_copied_runs_as_it_is(image: Tensor):
    class Single(Maps):
        def __deepcopy__(self, memo: dict) -> Any:
            raise TypeError("there is but one")

    model = Single()
    teacher = prepared(model, image)
    assert teacher.network is model and teacher.runs_as["folded"] == 0
    torch.testing.assert_close(teacher(image), model.eval()(image))


def test_a_network_that_keeps_tensors_for_its_next_call_runs_without_inference_mode(image: Tensor):
    class Keeps(Maps):
        def forward(self, image: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                scale = torch.ones(1, requires_grad=True)
                return super().forward(image) * scale

    model = Keeps()
    teacher = prepared(model, image)
    torch.testing.assert_close(teacher(image), model(image))


def test_a_resumed_run_runs_its_teacher_as_before(image: Tensor, monkeypatch):
    was = prepared(Maps(), image, precision="bf16").runs_as
    monkeypatch.delenv("TASKDISTILL_TEACHER")
    monkeypatch.setattr(
        "taskdistill.core.teacher.fastest", lambda runs: (list(runs)[0], dict.fromkeys(runs, 0.0))
    )
    teacher = prepared(Maps(), image, memory_format="contiguous")
    assert teacher.runs_as["precision"] == "fp32"
    teacher.adopt(was)
    assert teacher.runs_as == was
    teacher.adopt({})  # of a run that told nothing
    assert teacher.runs_as == was
    pinned = prepared(Maps(), image, precision="fp32")
    pinned.adopt(was)
    assert pinned.runs_as["precision"] == "fp32"


def test_an_early_exit_skips_the_rest(image: Tensor):
    from torch.utils.flop_counter import FlopCounterMode

    model = Maps()
    teacher = prepared(model, image, ("act",))

    def flops(stop_after: dict | None) -> int:
        with FlopCounterMode(display=False) as counter:
            teacher.observe(("act",), image, stop_after=stop_after)
        return counter.get_total_flops()

    places = 6 * 6 * len(image)
    stem, late, head = 2 * 27 * 8 * places, 2 * 72 * 8 * 4 * 4 * len(image), 2 * 40 * len(image)
    assert flops(None) == stem + late + head
    assert flops({("act", "output"): 1}) == stem


class Stream:
    """Notes who waits for whom."""

    log: list[tuple[str, str]] = []

    def __init__(self, name: Any) -> None:
        self.name, self.device = str(name), "cuda"

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, other.name))


def test_a_stream_of_its_own_waits_and_is_waited_for(monkeypatch, image: Tensor):
    import contextlib

    Stream.log.clear()
    current = Stream("student")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("teacher"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    teacher = FrozenTeacher(Maps())
    with teacher.beside(torch.device("cpu")):
        teacher(image)
    teacher.join(image)
    assert Stream.log == []
    with teacher.beside(torch.device("cuda")):
        teacher(image)
    assert Stream.log == [("teacher", "student")]
    teacher.join([])
    assert Stream.log == [("teacher", "student"), ("student", "teacher")]


# -- taps ------------------------------------------------------------------------------------------


def test_observe_gives_what_the_taps_saw_and_the_output(image: Tensor):
    net = Net()
    captured, output = FrozenTeacher(net).observe(["head@input"], image)
    torch.testing.assert_close(net.head(captured.tensors("head@input")[0]), output)


def test_observe_stops_early_only_when_told(image: Tensor):
    net = Net()
    teacher = FrozenTeacher(net)
    _, output = teacher.observe(["stem"], image)
    assert output is not None and net.head_calls == 1
    captured, output = teacher.observe(["stem"], image, stop_after={("stem", "output"): 1})
    assert output is None and net.head_calls == 1
    torch.testing.assert_close(captured.tensors("stem")[0], net.stem(image))


def test_observe_another_forward(image: Tensor):
    net = Net()
    _, output = FrozenTeacher(net).observe(["stem"], image, forward=lambda x: net.stem(x))
    assert output.shape == (4, 4, 6, 6) and net.head_calls == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_gives_the_same_and_is_tapped(image: Tensor):
    net = Net()
    expected = copy.deepcopy(net).eval()
    teacher = FrozenTeacher(net, compile=True)
    for _ in range(3):
        torch.testing.assert_close(teacher(image), expected(image), rtol=1e-4, atol=1e-5)
        captured, _ = teacher.observe(["head"], image)
        torch.testing.assert_close(captured.tensors("head")[0], expected(image))


# -- reading files ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.pth"
    torch.save({"state_dict": Net().state_dict(), "meta": {"epoch": 3}}, path)
    return path


def test_a_file_that_is_missing(tmp_path: Path):
    with pytest.raises(CheckpointError, match="gone.pth.*does not exist.*the folder exists"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="nor does its folder"):
        read_checkpoint(tmp_path / "no" / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file(tmp_path: Path, legacy: bool):
    path = tmp_path / "cut.pth"
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    cuts = {0, 1, 2, 3, 4, 5, 30, 100, len(whole) - 1, len(whole) - 10, len(whole) - 22}
    for size in sorted(cuts | {len(whole) * part // 16 for part in range(16)}):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            load_weights(Net(), path)
        # The old format is one pickle: cut within the name of a class, it asks for another one.
        said = f"cut.pth' ({size} bytes) is truncated" in str(caught.value)
        assert said or (legacy and "the file is damaged" in str(caught.value)), caught.value
    path.write_bytes(whole)
    load_weights(Net(), path)


@pytest.mark.filterwarnings("ignore:Defining your `__torch_function__`")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64) | st.integers(0, 10_000))
def test_other_bytes_are_told_as_damage(tmp_path: Path, content: bytes | int):
    path = tmp_path / "noise.pth"
    if isinstance(content, int):  # a real file of the old format with some bytes overwritten
        generator = random.Random(content)
        torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
        damaged = bytearray(path.read_bytes())
        for _ in range(10):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        content = bytes(damaged)
    path.write_bytes(content)
    try:
        read_checkpoint(path)  # some damage is to numbers only, and cannot be seen
    except CheckpointError as error:
        assert "noise.pth" in str(error)


class Intruder:
    """Would create a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (touch, (self.mark,))


def touch(mark: Path) -> None:
    mark.touch()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, legacy: bool):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    content = {"state_dict": Net().state_dict(), "extra": Intruder(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match="touch.*Loading that would run code, which is refused"
    ):
        load_weights(Net(), path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # to be sure that it would have
    assert mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.\S+\.Linear.*Save its state_dict alone"):
        read_checkpoint(tmp_path / "model.pth")


def test_classes_named_safe_are_read(tmp_path: Path):
    path = tmp_path / "extra.pth"
    torch.save({"state_dict": Net().state_dict(), "extra": Harmless()}, path)
    with pytest.raises(CheckpointError, match="Harmless"):
        read_checkpoint(path)
    assert isinstance(read_checkpoint(path, [Harmless])["extra"], Harmless)
    with pytest.raises(CheckpointError):  # for that call only
        read_checkpoint(path)


class Harmless:
    pass


# -- loading weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_where_frameworks_put_them(
    tmp_path: Path, image: Tensor, key: str | None, prefix: str
):
    source, path = Net().eval(), tmp_path / "weights.pth"
    state = OrderedDict((prefix + name, value) for name, value in source.state_dict().items())
    torch.save(state if key is None else {key: state, "epoch": 1}, path)
    net = Net().eval()
    assert not torch.equal(net(image), source(image))
    load_weights(net, path)
    assert torch.equal(net(image), source(image))


def test_a_model_with_a_module_called_module_keeps_its_names(tmp_path: Path):
    source, net = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    load_weights(net, tmp_path / "weights.pth")
    assert torch.equal(net["module"].weight, source["module"].weight)


def test_names_of_another_release_are_mapped_before_the_strict_look(tmp_path: Path):
    source, target = nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))
    file = tmp_path / "other.pth"
    torch.save({f"module.{name}": v for name, v in source.state_dict().items()}, file)
    load_weights(target, file, names=lambda state: {f"0.{name}": v for name, v in state.items()})
    assert torch.equal(target[0].weight, source.weight)
    with pytest.raises(CheckpointError, match="0.weight"):
        load_weights(target, file, names=lambda state: {"0.bias": state["bias"]})


def test_another_architecture_lists_what_does_not_fit(saved: Path):
    net = Net(classes=5)
    net.neck = nn.Linear(2, 2)
    del net.stem[0]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, saved)
    lines = str(caught.value).splitlines()
    assert any(li.startswith("  missing (") and "neck.weight" in li for li in lines)
    assert any(
        li.startswith("  unexpected (") and "stem.2." in li or "stem.1." in li for li in lines
    )
    shapes = next(li for li in lines if li.startswith("  other shape ("))
    assert "head.weight (model (5, 4), file (3, 4))" in shapes
    assert "strict=False" in lines[-1]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was touched"


def test_a_long_list_is_cut(tmp_path: Path):
    names = {f"other.{i}": torch.zeros(1) for i in range(30)}
    torch.save({**Net().state_dict(), **names}, tmp_path / "big.pth")
    with pytest.raises(CheckpointError, match=r"unexpected \(30\): other.0, .*and 22 more"):
        load_weights(Net(), tmp_path / "big.pth")


def test_an_entry_that_is_no_tensor_has_another_shape(tmp_path: Path):
    torch.save({**Net().state_dict(), "head.bias": 3}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"head.bias \(model \(3,\), file int\)"):
        load_weights(Net(), tmp_path / "odd.pth")


def test_strict_false_loads_what_fits(saved: Path):
    net = Net(classes=5)
    head = net.head.weight.clone()
    load_weights(net, saved, strict=False)
    source = torch.load(saved, weights_only=True)["state_dict"]
    assert torch.equal(net.stem[0].weight, source["stem.0.weight"])
    assert torch.equal(net.head.weight, head)


def test_strict_false_does_not_accept_that_nothing_fits(saved: Path):
    with pytest.raises(TeacherError, match="Nothing in checkpoint"):
        load_weights(nn.Linear(2, 2), saved, strict=False)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {0: torch.ones(1)}])
def test_a_file_without_a_state_dict(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(Net(), tmp_path / "other.pth")


def test_the_hash_is_of_the_file_s_bytes(saved: Path):
    expected = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert load_weights(Net(), saved) == load_weights(Net(), saved) == expected
    big = saved.with_name("big")
    big.write_bytes(b"x" * (3 << 20))  # more than one block
    assert file_sha256(big) == hashlib.sha256(b"x" * (3 << 20)).hexdigest()


def test_a_file_from_before_batches_were_counted(tmp_path: Path):
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    old = {k: v for k, v in trained.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save({"state_dict": {f"module.{k}": v for k, v in old.items()}}, tmp_path / "old.th")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_weights(model, tmp_path / "old.th")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in old.items())
    # One that counts some of them is short of the others.
    wider = nn.Sequential(*trained, nn.BatchNorm2d(4))
    torch.save({**wider.state_dict(), "1.num_batches_tracked": torch.tensor(1)}, tmp_path / "a.th")
    state = torch.load(tmp_path / "a.th", weights_only=True)
    state.pop("2.num_batches_tracked")
    torch.save(state, tmp_path / "short.th")
    with pytest.raises(CheckpointError, match="missing .*2.num_batches_tracked"):
        load_weights(wider, tmp_path / "short.th")


def test_the_hash_of_weights_is_of_names_values_shapes_and_types():
    def network(value: float = 1.0) -> nn.Module:
        made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        for tensor in made.state_dict().values():
            tensor.fill_(value)
        return made

    base = network()
    assert state_sha256(base) == state_sha256(network())
    others = [network(), network(), network().to(torch.bfloat16), nn.Sequential(base)]
    others[0].get_parameter("0.weight").data[1, 0] += 1e-6
    others[1].get_buffer("1.running_mean")[2] = 0.5
    others.append(network())
    first: Any = others[-1].get_submodule("0")
    first.weight = nn.Parameter(first.weight.reshape(2, 3))
    assert len({state_sha256(model) for model in [base, *others]}) == 6


def test_the_hash_of_weights_needs_no_order_of_memory():
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = nn.Parameter(one.weight.detach().t().contiguous().t())
    assert state_sha256(one) == state_sha256(other)


def test_the_hash_of_weights_is_of_names_shapes_and_values():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    first = state_sha256(net)
    assert first == state_sha256(copy.deepcopy(net)) and len(first) == 64
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6
    assert state_sha256(net) != first


# -- several processes -----------------------------------------------------------------------------


def _choose_on_one_rank(rank: int, folder: Path) -> None:
    os.environ.pop("TASKDISTILL_TEACHER", None)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )

    def choose(runs: dict) -> tuple:  # the one measures this, the other that
        return list(runs)[-1 if rank == 0 else 0], dict.fromkeys(runs, 0.0)

    teacher_module.fastest = choose  # type: ignore[assignment]
    torch.manual_seed(0)
    teacher = prepared(Maps(), torch.randn(2, 3, 8, 8))
    torch.save(teacher.runs_as, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_processes_run_their_teachers_as_the_first_one_does(tmp_path: Path):
    torch.multiprocessing.spawn(_choose_on_one_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert first == second
    assert (first["precision"], first["memory_format"]) == ("bf16", "channels_last")
