from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.errors import TapError
from taskdistill.core.taps import Captured, Tap, Taps, flatten_tensors, guard_hooks, tried

LEVELS = 5


class Detector(nn.Module):
    """Pyramid levels through one shared head, as in a dense detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({f"layer{i}": nn.Conv2d(3, 3, 1) for i in (1, 2)})
        self.backbone["stem"] = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU()))
        self.neck = Neck()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x = self.backbone["stem"](image)
        x = self.backbone["layer2"](self.backbone["layer1"](x))
        outputs = [self.head(level) for level in self.neck(image=x)]
        return outputs, [-output for output in outputs]


class Neck(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.avg_pool2d(image, 2**i) for i in range(LEVELS))


@pytest.fixture
def detector() -> Detector:
    return Detector()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 16, 16)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- what is read ----------------------------------------------------------------------------------


def test_shared_head_keeps_every_call_in_order(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head", "neck"])
    with taps.capture() as captured:
        outputs, _ = detector(image)
    assert captured.counts() == {("head", "output"): LEVELS, ("neck", "output"): 1}
    assert all(a is b for a, b in zip(captured.tensors("head"), outputs, strict=True))
    assert [t.shape[-1] for t in captured.tensors("neck")] == [16, 8, 4, 2, 1]


def test_input_is_what_went_in_by_position_and_by_keyword(detector: Detector, image: Tensor):
    with Taps(detector, ["head@input", "neck", "neck@input", "backbone.layer2"]).capture() as seen:
        detector(image)
    for got, level in zip(seen.tensors("head@input"), seen.tensors("neck"), strict=True):
        assert got is level
    assert seen.tensors("neck@input")[0] is seen.tensors("backbone.layer2")[0]


def test_every_capture_starts_empty(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head"])
    for _ in range(2):
        with taps.capture() as captured:
            detector(image)
        assert len(captured.tensors("head")) == LEVELS


def test_gradient_flows_through_what_was_read(detector: Detector, image: Tensor):
    with Taps(detector, ["backbone.layer1"]).capture() as captured:
        detector(image)
    captured.tensors("backbone.layer1")[0].sum().backward()
    assert detector.backbone["layer1"].weight.grad is not None
    assert detector.head.weight.grad is None


@given(st.integers(-7, 7), st.none() | st.integers(-7, 7), st.sampled_from([None, 1, 2, -1]))
def test_selection_is_python_s_own(start: int, stop: int | None, step: int | None):
    text = f"{start}:{'' if stop is None else stop}" + ("" if step is None else f":{step}")
    expected = list(range(LEVELS))[slice(start, stop, step)]
    net = Neck()
    with Taps(net_of(net), [f"neck[{text}]"]).capture() as captured:
        net(image=torch.zeros(1, 1, 16, 16))
    if not expected:
        with pytest.raises(TapError, match="selects none of the 5 tensors"):
            captured.tensors(f"neck[{text}]")
    else:
        sizes = [t.shape[-1] for t in captured.tensors(f"neck[{text}]")]
        assert sizes == [16 >> i for i in expected]


def net_of(neck: Neck) -> nn.Module:
    return nn.ModuleDict({"neck": neck})


@pytest.mark.parametrize(("index", "size"), [(0, 16), (4, 1), (-1, 1), (-2, 2)])
def test_index_selects_one(index: int, size: int):
    net = Neck()
    with Taps(net_of(net), [f"neck[{index}]"]).capture() as captured:
        net(image=torch.zeros(1, 1, 16, 16))
    assert [t.shape[-1] for t in captured.tensors(f"neck[{index}]")] == [size]


def test_flattens_nested_outputs_in_order():
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert flatten_tensors({"x": [a, (b, None, "text")], "y": {"z": c}}) == [a, b, c]
    assert flatten_tensors(3) == []


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("backbone.layer*", ["backbone.layer1", "backbone.layer2"]),
        ("backbone.layer?", ["backbone.layer1", "backbone.layer2"]),
        ("backbone.*", ["backbone.layer1", "backbone.layer2", "backbone.stem"]),
        ("backbone.stem.**", ["backbone.stem.0", "backbone.stem.1", "backbone.stem.1.0"]),
        ("**.1.0", ["backbone.stem.1.0"]),
        ("**stem", ["backbone.stem"]),
        ("*", ["backbone", "neck", "head"]),
        ("head", ["head"]),
    ],
)
def test_globs(detector: Detector, path: str, names: list[str]):
    assert list(Tap.parse(path).modules(detector)) == names


def test_a_glob_reads_every_module_in_the_model_s_order(detector: Detector, image: Tensor):
    with Taps(detector, ["backbone.layer*", "backbone.layer2"]).capture() as captured:
        detector(image)
    first, second = captured.tensors("backbone.layer*")
    assert second is captured.tensors("backbone.layer2")[0]
    assert first is not second


def test_a_dot_is_a_dot_and_not_any_character():
    net = nn.ModuleDict({"abc": nn.Identity()})
    with pytest.raises(TapError):
        Tap.parse("a.*c").modules(net)


def test_a_module_with_two_names_answers_to_both_and_is_read_once_by_a_glob():
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"first": shared, "second": shared})
    assert Tap.parse("second").modules(net) == {"second": shared}
    assert list(Tap.parse("*").modules(net)) == ["first"]
    with Taps(net, ["first", "second"]).capture() as captured:
        output = shared(torch.ones(1, 2))
    assert captured.tensors("first")[0] is captured.tensors("second")[0] is output


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("nekc", "'neck'"),
        ("backbone.layer3", "'backbone.layer1'"),
        ("Head", "'head'"),
        ("backbone.lyer*", "'backbone.layer"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(detector: Detector, spec: str, nearest: str):
    with pytest.raises(TapError) as caught:
        Taps(detector, [spec])
    assert spec in str(caught.value) and nearest in str(caught.value)
    assert "top-level modules are: backbone, neck, head" in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["", "neck[", "neck[]", "neck[a]", "neck[1:2:3:4]", "neck[::0]", "neck[1-]", "neck@outside"]
    + ["neck@input@input", "[0]", "neck[0][1]", "neck[0]@input"],
)
def test_malformed_taps(detector: Detector, spec: str):
    with pytest.raises(TapError):
        Taps(detector, [spec])


@pytest.mark.parametrize("spec", [None, 3, nn.ReLU()])
def test_a_tap_is_a_string(spec: Any):
    with pytest.raises(TapError, match="not of the form"):
        Tap.parse(spec)


def test_a_module_that_is_not_called(detector: Detector, image: Tensor):
    with Taps(detector, ["backbone"]).capture() as captured:
        detector(image)
    with pytest.raises(TapError, match="'backbone'.*was not called"):
        captured.tensors("backbone")


def test_whether_a_module_was_called(detector: Detector, image: Tensor):
    taps = Taps(detector, ["backbone.layer1", "backbone"])
    with taps.capture() as captured:
        detector(image)
    assert captured.called("backbone.layer1") and not captured.called("backbone")


def test_a_tap_that_was_not_asked_for(detector: Detector, image: Tensor):
    with Taps(detector, ["neck[0]"]).capture() as captured:
        detector(image)
    with pytest.raises(TapError, match=r"not asked for. Did you mean 'neck\[0\]'"):
        captured.tensors("neck[1]")


# -- hooks -----------------------------------------------------------------------------------------


def test_hooks_live_inside_the_block_only(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head", "neck@input"])
    assert hooks(detector) == 0
    with taps.capture():
        assert hooks(detector) == 2
        detector(image)
    assert hooks(detector) == 0


def test_hooks_are_gone_after_an_exception(detector: Detector):
    with pytest.raises(KeyError, match="mine"):
        with Taps(detector, ["head", "neck"]).capture():
            raise KeyError("mine")
    with pytest.raises(RuntimeError):  # the model's own
        with Taps(detector, ["head", "neck"]).capture():
            detector(torch.zeros(1, 5, 16, 16))
    assert hooks(detector) == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_carries_no_hook(detector: Detector, image: Tensor, duplicate: Any):
    with Taps(detector, ["head", "**@input"]).capture():
        detector(image)
    assert hooks(duplicate(detector)) == 0


def test_a_copy_of_the_taps_reads_the_copied_model(detector: Detector, image: Tensor):
    both = copy.deepcopy((detector, Taps(detector, ["head"])))
    with both[1].capture() as captured:
        detector(image)
        assert captured.counts() == {("head", "output"): 0}
        both[0](image)
    assert captured.counts() == {("head", "output"): LEVELS}


def test_a_module_replaced_later_is_read_under_its_name(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head"])
    detector.head = nn.Conv2d(3, 7, 1)
    with taps.capture() as captured:
        detector(image)
    assert captured.tensors("head")[0].shape[1] == 7


# -- changes in place ------------------------------------------------------------------------------


class Scribble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].zero_()
        return x


@pytest.mark.parametrize("after", [nn.ReLU(inplace=True), Scribble()])
@pytest.mark.parametrize("spec", ["0", "1@input"])
def test_a_change_in_place_is_told(after: nn.Module, spec: str):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), after, nn.Conv2d(4, 1, 1))
    taps = Taps(net, [spec, "2"])
    image = torch.randn(2, 3, 4, 4)
    with taps.capture() as captured:
        net(image)
    with pytest.raises(TapError, match="changed in place.*Distiller.setup"):
        captured.tensors(spec)
    assert captured.mutated() == set(taps.keys_of(spec))
    assert len(captured.tensors("2")) == 1  # the others can be read


@pytest.mark.parametrize("spec", ["0", "1@input"])
def test_a_copied_tap_holds_the_value_before_the_change(spec: str):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    taps = Taps(net, [spec])
    taps.copied |= set(taps.keys)
    image = torch.randn(2, 3, 4, 4)
    with taps.capture() as captured:
        net(image)
    (tensor,) = captured.tensors(spec)
    torch.testing.assert_close(tensor, net[0](image))
    assert (tensor < 0).any()
    tensor.square().sum().backward()
    assert net[0].weight.grad is not None


def test_a_copy_keeps_nesting(detector: Detector, image: Tensor):
    taps = Taps(net := nn.Sequential(detector), ["0"])
    taps.copied |= set(taps.keys)
    with taps.capture() as captured:
        outputs, negated = net(image)
    ((got, got_negated),) = captured.calls("0")
    assert got[0] is not outputs[0]
    torch.testing.assert_close((got, got_negated), (outputs, negated))


def test_inference_mode_has_no_versions_and_works(detector: Detector, image: Tensor):
    with torch.inference_mode(), Taps(detector, ["head"]).capture() as captured:
        detector(image)
    assert len(captured.tensors("head")) == LEVELS


# -- early exit ------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Calls a head several times, then something that costs; swallows errors as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.later = nn.Linear(2, 2), nn.Linear(2, 2)
        self.head_calls = self.later_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        try:
            for _ in range(3):
                self.head_calls += 1
                x = self.head(x)
            self.later_calls += 1
            return self.later(x)
        except Exception:
            return x


def test_stops_after_the_last_call_that_is_needed():
    net = Counting()
    taps = Taps(net, ["head", "head@input"])
    output = None
    needed = {("head", "output"): 3, ("head", "input"): 3}
    with taps.capture(needed) as captured:
        output = net(torch.ones(1, 2))
    assert output is None
    assert (net.head_calls, net.later_calls) == (3, 0)
    assert captured.counts() == needed
    assert hooks(net) == 0


def test_runs_to_the_end_where_nothing_says_stop():
    net = Counting()
    with Taps(net, ["head"]).capture():
        net(torch.ones(1, 2))
    assert net.later_calls == 1


def test_waits_for_the_slowest_tap():
    net = Counting()
    with Taps(net, ["head", "later"]).capture({("head", "output"): 1, ("later", "output"): 1}):
        net(torch.ones(1, 2))
    assert (net.head_calls, net.later_calls) == (3, 1)


def test_the_next_capture_counts_anew():
    net = Counting()
    taps = Taps(net, ["head"])
    needed = {("head", "output"): 3}
    for _ in range(2):
        with taps.capture(needed) as captured:
            net(torch.ones(1, 2))
        assert len(captured.tensors("head")) == 3
    assert needed == {("head", "output"): 3}


# -- torch.compile ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_model_is_read(detector: Detector):
    torch._dynamo.reset()
    compiled = torch.compile(detector, backend="eager")
    taps = Taps(detector, ["head", "neck@input"])
    for _ in range(3):
        image = torch.randn(2, 3, 16, 16)
        with taps.capture() as captured:
            outputs, _ = compiled(image)
        torch.testing.assert_close(captured.tensors("head"), outputs)
        torch.testing.assert_close(outputs, detector(image)[0])
        with taps.capture({("head", "output"): LEVELS}) as captured:
            compiled(image)
        torch.testing.assert_close(captured.tensors("head"), outputs)


@pytest.mark.slow
def test_new_hooks_do_not_make_a_model_be_compiled_anew():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    compiled, taps = torch.compile(net, backend="eager"), Taps(net, ["0", "2"])
    frames = []
    for _ in range(4):
        with taps.capture():
            compiled(torch.randn(2, 4))
        with taps.capture({("0", "output"): 1}):
            compiled(torch.randn(2, 4))
        frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert frames[0] > 0
    assert frames[1] == frames[-1]  # in the second round, each kind follows the other


def test_a_list_of_tensors_in_its_own_order():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    taps = Taps(net, ["*[2,0,-1]", "*[0,3]"])
    with taps.capture() as captured:
        net(torch.ones(1, 2))
    assert [t.shape[1] for t in captured.tensors("*[2,0,-1]")] == [5, 3, 5]
    with pytest.raises(TapError, match="one that is not among them"):
        captured.tensors("*[0,3]")


# -- weights ---------------------------------------------------------------------------------------


def test_a_weight_is_read_without_its_module_being_called():
    net = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "other": nn.Linear(4, 4)})
    with Taps(net, ["conv@weight"]).capture() as captured:
        net["other"](torch.ones(1, 4))
    assert captured.tensors("conv@weight") == [net["conv"].weight]
    assert captured.counts() == {("conv", "weight"): 1}


def test_a_weight_is_no_reason_to_end_a_forward_or_to_wait():
    called: list[str] = []
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].register_forward_hook(lambda *_: called.append("1"))
    taps = Taps(net, ["2@weight", "0"])
    with taps.capture() as captured:
        net(torch.ones(1, 2))
    with taps.capture(captured.counts()) as again:
        net(torch.ones(1, 2))
    assert called == ["1"]  # the second forward ended after "0"
    assert again.tensors("2@weight")[0] is net[2].weight


def test_a_module_without_a_weight_is_told():
    with pytest.raises(TapError, match=r"Module '0' \(ReLU\) has no weight to tap"):
        Taps(nn.Sequential(nn.ReLU()), ["0@weight"])


# -- values from elsewhere -------------------------------------------------------------------------


def test_what_taps_saw_can_be_made_of_stored_values(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head", "neck[1:3]", "head@weight"])
    with taps.capture() as live:
        detector(image)
    calls = live.by_module()
    assert {key: len(values) for key, values in calls.items()} == {
        ("head", "output"): LEVELS,
        ("neck", "output"): 1,
    }
    made = Captured.of(taps, calls)
    assert made.counts() == live.counts() and made.taps is taps
    for spec in taps.specs:
        assert made.called(spec)
        assert all(a is b for a, b in zip(made.tensors(spec), live.tensors(spec), strict=True))
    detector.head.weight = nn.Parameter(torch.ones(2, 3, 1, 1))
    assert Captured.of(taps, calls).tensors("head@weight")[0] is detector.head.weight


def test_stored_values_that_are_missing_or_of_no_tap(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head", "neck"])
    made = Captured.of(taps, {("neck", "output"): [(image,)]})
    assert not made.called("head") and made.tensors("neck")[0] is image
    with pytest.raises(TapError, match="'head'.* was not called"):
        made.by_module()
    with pytest.raises(TapError, match="'backbone@output' is not tapped; tapped is head@output"):
        Captured.of(taps, {("backbone", "output"): [image]})
    image.add_(1)
    with pytest.raises(TapError, match="'neck' returned was changed in place"):
        made.calls("neck")


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(12)
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_taps_within_compiled_code_break_no_graph_and_make_nothing_anew():
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = Stages()
    twin = copy.deepcopy(net)
    specs = ["stages.*", "stages.*.1@input", "stages.3.0@weight"]
    taps, plain = Taps(net, specs), Taps(twin, specs)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for _ in range(3):
        image = torch.randn(6, 4)
        with taps.capture() as seen:
            compiled(image)
        with plain.capture() as expected:
            twin(image)
        assert seen.counts() == expected.counts()
        for spec in specs:
            for a, b in zip(seen.tensors(spec), expected.tensors(spec), strict=True):
                torch.testing.assert_close(a, b)
    assert len(graphs) == 1


def test_code_compiled_before_a_capture_is_read_where_hooks_are_guarded():
    torch._dynamo.reset()
    # Not monkeypatch, which would take the entry out instead of giving it back.
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    guard_hooks()
    net = Stages()
    compiled, taps = torch.compile(net, backend="eager"), Taps(net, ["stages.11"])
    for _ in range(2):
        compiled(torch.randn(6, 4))
        with taps.capture() as seen:
            output = compiled(torch.randn(6, 4))
        assert seen.tensors("stages.11")[0] is output


def test_captures_within_one_another_are_all_told(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head"])
    with taps.capture() as outer:
        detector(image)
        with taps.capture() as inner:
            detector(image)
        with taps.capture({("head", "output"): 2}) as short:
            detector(image)
    counts = [seen.counts()["head", "output"] for seen in (outer, inner, short)]
    assert counts == [2 * LEVELS + 2, LEVELS, 2]
    assert hooks(detector) == 0


def test_what_was_tried_is_forgotten(detector: Detector, image: Tensor):
    taps = Taps(detector, ["head"])
    with taps.capture() as seen:
        detector(image)
        with tried() as forget:
            detector(image)
            forget()
        with tried():
            detector(image)
    assert seen.counts()["head", "output"] == 2 * LEVELS
