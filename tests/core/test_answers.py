from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core.answers import AnswerLayout, Probe, SparseForm
from taskdistill.core.cache import CacheSpec, Field, TeacherCache
from taskdistill.core.errors import CacheError, ConfigError, TapError
from taskdistill.core.losses import SparseLogits, sparse_logits
from taskdistill.core.taps import Captured, Taps


class Neck(nn.Module):
    """Three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.conv(image)[:, :, ::step, ::step] for step in (1, 2, 4))


class Detector(nn.Module):
    """A neck, a head shared over its levels, and layers of queries as DETR's head has them."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = Neck()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Any]:
        levels = self.neck(image)
        maps = [self.head(level) for level in levels]
        queries = torch.stack([levels[2].mean((2, 3)), levels[1].mean((2, 3))])
        return {"maps": maps, "queries": queries, "levels": levels, "count": 3, "extra": None}


def images(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def ask(taps: Taps, model: nn.Module, *args: Any) -> tuple[Captured, Any]:
    with torch.no_grad(), taps.capture() as captured:
        output = model(*args)
    return captured, output


def nothing() -> Captured:
    return Captured.of(Taps(nn.Identity(), []), {})


def answers(*outputs: Any, lengths: tuple[int, ...] | None = None) -> list[Probe]:
    """Outputs of 2, 3, ... samples, without taps."""
    return [
        Probe(nothing(), output, n, None if lengths is None else lengths[n - 2])
        for n, output in enumerate(outputs, 2)
    ]


def alike(a: Any, b: Any) -> None:
    """The same nesting of the same numbers, in float32."""
    if isinstance(a, Tensor):
        assert a.dtype == (torch.float32 if a.is_floating_point() else b.dtype)
        assert torch.equal(a, b)
    elif isinstance(b, Mapping):
        assert type(a) is dict and list(a) == list(b)
        for key, value in b.items():
            alike(a[key], value)
    elif isinstance(b, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            alike(x, y)
    else:
        assert a == b


# -- there and back --------------------------------------------------------------------------------


def test_an_answer_goes_through_a_cache_unchanged(tmp_path: Path):
    torch.manual_seed(0)
    model = Detector()
    taps = Taps(model, ["neck", "head", "neck.conv@input", "head@weight"])
    probes = [Probe(*ask(taps, model, images(n)), n) for n in (2, 3)]
    layout = AnswerLayout.learn(probes, dtype="fp32")
    cache = TeacherCache(tmp_path, CacheSpec(layout.fields, 7, {"seed": 0}, 4))
    batch = images(7, seed=1)
    for shard in cache.missing():
        own = cache.positions(shard)
        part = ask(taps, model, batch[own.start : own.stop])
        cache.write(shard, layout.take_apart(*part))
    order = [6, 0, 3, 3]
    captured, output = layout.put_together(cache.read(order), taps)
    live, expected = ask(taps, model, batch[order])
    for spec in taps.specs:
        alike(captured.calls(spec), live.calls(spec))
    alike(output, expected)
    assert captured.counts() == live.counts()


def test_fields_are_named_by_their_place_and_shared_tensors_stored_once():
    model = Detector()
    taps = Taps(model, ["neck", "head", "head@input"])
    layout = AnswerLayout.learn([Probe(*ask(taps, model, images(n)), n) for n in (2, 3)])
    assert {field.name: field.shape for field in layout.fields} == {
        "tap neck@output 0 0": (4, 8, 8),
        "tap neck@output 0 1": (4, 4, 4),
        "tap neck@output 0 2": (4, 2, 2),
        "tap head@output 0": (2, 8, 8),
        "tap head@output 1": (2, 4, 4),
        "tap head@output 2": (2, 2, 2),
        "answer queries": (2, 4),
    }
    assert {field.dtype for field in layout.fields} == {"float16"}


def test_of_a_tap_only_what_it_selects_is_stored():
    model = Detector()
    taps = Taps(model, ["neck[1:2]", "head[-1]"])
    probes = [Probe(ask(taps, model, images(n))[0], None, n) for n in (2, 3)]
    layout = AnswerLayout.learn(probes, dtype="fp32")
    assert [field.name for field in layout.fields] == ["tap neck@output 0 1", "tap head@output 2"]
    live, _ = ask(taps, model, images(5, seed=2))
    captured, output = layout.put_together(layout.take_apart(live, None), taps)
    assert output is None
    for spec in taps.specs:
        alike(captured.tensors(spec), live.tensors(spec))
    # The others cannot be mistaken for answers.
    unselected = captured.calls("neck[1:2]")[0][0]
    assert unselected.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        unselected.sum().item()


def test_weights_are_read_from_the_model_as_it_is_then():
    model = nn.Sequential(nn.Linear(3, 2))
    taps = Taps(model, ["0", "0@weight"])
    probes = [Probe(*ask(taps, model, torch.ones(n, 3)), n) for n in (2, 3)]
    layout = AnswerLayout.learn(probes)
    assert [field.name for field in layout.fields] == ["tap 0@output 0"]
    rows = layout.take_apart(*ask(taps, model, torch.ones(4, 3)))
    model.to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    captured, _ = layout.put_together(rows, taps)
    alike(captured.tensors("0@weight"), [torch.full((2, 3), 2.0)])


class Pair(NamedTuple):
    left: Any
    right: Any


def build(tree: Any, samples: int, length: int, generator: torch.Generator) -> Any:
    """An answer of which the tree's ("tensor", axes) leaves are random."""
    if isinstance(tree, tuple) and tree and tree[0] == "tensor":
        shape = [{"B": samples, "T": length}.get(axis, axis) for axis in tree[1]]
        if tree[2].is_floating_point:
            return torch.randn(shape, generator=generator).to(tree[2])
        return torch.randint(2, shape, generator=generator).to(tree[2])
    if isinstance(tree, dict):
        return OrderedDict((k, build(v, samples, length, generator)) for k, v in tree.items())
    if isinstance(tree, list):
        return [build(entry, samples, length, generator) for entry in tree]
    if isinstance(tree, Pair):
        return Pair(*(build(entry, samples, length, generator) for entry in tree))
    if isinstance(tree, tuple):
        return tuple(build(entry, samples, length, generator) for entry in tree)
    return tree


@st.composite
def tensors(draw: Any) -> tuple[str, tuple[Any, ...], torch.dtype]:
    others = draw(st.lists(st.sampled_from(["T", 1, 2, 3, 4]), max_size=3))
    at = draw(st.integers(0, len(others)))
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
    return "tensor", (*others[:at], "B", *others[at:]), draw(st.sampled_from(dtypes))


leaves = tensors() | st.none() | st.sampled_from([1, 2.5, "mean", True])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(lambda v: ("", *v))
        | st.dictionaries(st.sampled_from(["a", "b", "logits"]), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=80)
@given(tree=trees, first=tensors(), seed=st.integers(0, 2**20))
def test_any_nesting_comes_back(tree: Any, first: Any, seed: int):
    generator = torch.Generator().manual_seed(seed)
    tree = {"first": first, "rest": tree}
    sizes = ((2, 5), (3, 7))
    probes = [Probe(nothing(), build(tree, *size, generator), *size) for size in sizes]
    layout = AnswerLayout.learn(probes, dtype="fp32")
    output = build(tree, 4, 6, generator)
    rows = layout.take_apart(nothing(), output)
    assert list(rows) == [field.name for field in layout.fields]
    for field in layout.fields:
        assert tuple(rows[field.name].shape) == (4, *field.shape_of(6))
        assert rows[field.name].dtype == field.torch_dtype
    _, back = layout.put_together(rows, Taps(nn.Identity(), []))

    def widened(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.is_floating_point() else value
        if isinstance(value, Mapping):
            return {key: widened(entry) for key, entry in value.items()}
        if isinstance(value, Pair):
            return Pair(*map(widened, value))
        return type(value)(map(widened, value)) if isinstance(value, (list, tuple)) else value

    alike(back, widened(output))


def test_texts_of_their_own_length(tmp_path: Path):
    def answer(samples: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "logits": torch.randn(samples, length, 5, generator=generator),
            "attentions": torch.randn(samples, 2, length, length, generator=generator),
            "pooled": torch.randn(samples, 3, generator=generator),
        }

    layout = AnswerLayout.learn(
        [Probe(nothing(), answer(n, t), n, t) for n, t in ((2, 4), (3, 6))], dtype="fp32"
    )
    assert layout.fields == (
        Field("answer logits", (-1, 5), "float32"),
        Field("answer attentions", (2, -1, -1), "float32"),
        Field("answer pooled", (3,), "float32"),
    )
    cache = TeacherCache(tmp_path, CacheSpec(layout.fields, 4, {}, 4))
    lengths = torch.tensor([3, 1, 5, 2])
    output = answer(4, 5)
    cache.write(0, layout.take_apart(nothing(), output), lengths)
    taps = Taps(nn.Identity(), [])
    _, back = layout.put_together(cache.read([3, 0], 4), taps)
    for row, position in enumerate((3, 0)):
        n = int(lengths[position])
        assert torch.equal(back["logits"][row, :n], output["logits"][position, :n])
        assert torch.equal(
            back["attentions"][row, :, :n, :n], output["attentions"][position, :, :n, :n]
        )
        assert back["logits"].shape == (2, 4, 5) and not back["logits"][row, n:].any()
        assert torch.equal(back["pooled"][row], output["pooled"][position])


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stored"), [("fp32", None), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_floats_are_rounded_once(dtype: str, stored: torch.dtype | None):
    layout = AnswerLayout.learn(answers(torch.ones(2, 3), torch.ones(3, 3)), dtype=dtype)
    logits = torch.randn(5, 3)
    _, back = layout.put_together(layout.take_apart(nothing(), logits), Taps(nn.Identity(), []))
    alike(back, logits if stored is None else logits.to(stored).float())


def test_what_half_precision_cannot_hold_is_refused():
    layout = AnswerLayout.learn(answers({"hidden": torch.ones(2, 3)}, {"hidden": torch.ones(3, 3)}))
    large = torch.tensor([[1.0, -7e4, 3.0]])
    with pytest.raises(
        CacheError, match=r"answer hidden has numbers up to 7e\+04, which fp16.*'bf16' or 'fp32'"
    ):
        layout.take_apart(nothing(), {"hidden": large})
    # An attention mask is infinite already.
    masked = torch.tensor([[1.0, -torch.inf, 3.0]])
    rows = layout.take_apart(nothing(), {"hidden": masked})
    assert torch.equal(rows["answer hidden"].float(), masked)
    layout = AnswerLayout.learn(answers(torch.ones(2, 3), torch.ones(3, 3)), dtype="bf16")
    assert layout.take_apart(nothing(), large)["answer"].isfinite().all()


# -- some classes only -----------------------------------------------------------------------------


def logits_of(samples: int, classes: int = 50, seed: int = 0) -> Tensor:
    return 3 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def test_ten_classes_and_the_rest_are_42_bytes(tmp_path: Path):
    form = SparseForm(10, temperature=4.0)
    probes = answers({"logits": logits_of(2)}, {"logits": logits_of(3)})
    layout = AnswerLayout.learn(probes, sparse={"logits": form})
    cache = TeacherCache(tmp_path, CacheSpec(layout.fields, 6, {}, 6))
    assert cache.record_bytes == 42
    output = {"logits": logits_of(6, seed=1)}
    cache.write(0, layout.take_apart(nothing(), output))
    _, back = layout.put_together(cache.read([4, 1]), Taps(nn.Identity(), []))
    kept, expected = back["logits"], sparse_logits(output["logits"][[4, 1]], 10, temperature=4.0)
    assert isinstance(kept, SparseLogits) and kept.tail is not None and expected.tail is not None
    assert torch.equal(kept.values, expected.values.half().float())
    assert torch.equal(kept.indices.long(), expected.indices)
    assert torch.equal(kept.tail, expected.tail.half().float())


def test_an_output_that_is_a_tensor_is_called_logits():
    layout = AnswerLayout.learn(
        answers(logits_of(2), logits_of(3)), sparse={"logits": SparseForm(2, tail="renormalised")}
    )
    rows = layout.take_apart(nothing(), logits_of(4))
    _, kept = layout.put_together(rows, Taps(nn.Identity(), []))
    assert isinstance(kept, SparseLogits) and kept.tail is None
    assert kept.values.shape == (4, 2)


def test_classes_beyond_16_bits_and_on_another_axis():
    logits = torch.zeros(3, 40_000, 1)
    logits[:, 39_999] = 5.0
    layout = AnswerLayout.learn(
        answers(logits[:2], logits), sparse={"logits": SparseForm(1, dim=1)}
    )
    rows = layout.take_apart(nothing(), logits)
    _, kept = layout.put_together(rows, Taps(nn.Identity(), []))
    assert kept.indices.dtype == torch.int32 and kept.indices.eq(39_999).all()
    assert kept.values.shape == (3, 1, 1) and kept.tail.shape == (3, 1)


def test_another_form_is_another_cache(tmp_path: Path):
    probes = answers(logits_of(2), logits_of(3))
    forms = [SparseForm(3), SparseForm(3, temperature=4.0), SparseForm(3, tail="renormalised")]
    layouts = [AnswerLayout.learn(probes, sparse={"logits": form}) for form in forms]
    TeacherCache(tmp_path, CacheSpec(layouts[0].fields, 2, {}, 2))
    for layout in layouts[1:]:
        with pytest.raises(CacheError, match=r"top 3, bucket, temperature 1"):
            TeacherCache(tmp_path, CacheSpec(layout.fields, 2, {}, 2))


def test_draws_are_stored_and_learning_draws_none():
    before = torch.random.get_rng_state()
    form = SparseForm(4, tail="sampled")
    layout = AnswerLayout.learn(answers(logits_of(2), logits_of(3)), sparse={"logits": form})
    assert torch.equal(torch.random.get_rng_state(), before)
    generator = torch.Generator()
    found = [
        layout.take_apart(nothing(), logits_of(5), generator.manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    indices = next(name for name in found[0] if name.endswith("indices"))
    assert torch.equal(found[0][indices], found[1][indices])
    assert not torch.equal(found[0][indices], found[2][indices])


def test_some_classes_of_an_output_that_is_not_there():
    probes = answers({"logits": logits_of(2)}, {"logits": logits_of(3)})
    with pytest.raises(CacheError, match="'logit'.*Did you mean 'logits'.*It has: logits"):
        AnswerLayout.learn(probes, sparse={"logit": SparseForm(3)})


# -- what cannot be stored -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            {"boxes": torch.zeros(7, 4)},
            {"boxes": torch.zeros(9, 4)},
            r"answer boxes is \(7, 4\) and \(9, 4\) for 2 samples and 3 samples: axis 0 follows",
        ),
        ({"a": torch.zeros(4)}, {"a": torch.zeros(4)}, "answer a .*no axis follows the number of"),
        ([torch.zeros(2, 2)], [torch.zeros(3, 3)], r"answer 0 .*the axes \[0, 1\] all follow"),
        (torch.zeros(2), torch.zeros(3, 1), "its axes change"),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(3)}, r"entries \['a'\] and \['b'\]"),
        ([torch.zeros(2)], [torch.zeros(3)] * 2, "has 1 and 2 entries"),
        ([torch.zeros(2)], (torch.zeros(3),), "built alike"),
        ([torch.zeros(2), 2], [torch.zeros(3), 3], "answer 1 is 2 and 3 in two batches"),
        ([torch.zeros(2), object()], [torch.zeros(3), object()], "is an object object and"),
        (torch.zeros(2).to(torch.complex64), torch.zeros(3).to(torch.complex64), "complex64"),
        (torch.zeros(2), torch.zeros(3).long(), "torch.float32, torch.int64"),
        ({"a": None}, {"a": None}, "Nothing of the teacher's answers is stored"),
    ],
)
def test_answers_that_cannot_be_stored(first: Any, second: Any, says: str):
    with pytest.raises(CacheError, match=says):
        AnswerLayout.learn(answers(first, second))


@pytest.mark.parametrize(
    ("samples", "lengths", "says"),
    [
        ((2, 2), (None, None), r"different numbers of samples, got \[2, 2\]"),
        ((2,), (None,), r"got \[2\]"),
        ((2, 3), (4, 4), r"different lengths.*got lengths \[4, 4\]"),
        ((2, 3), (4, None), r"got lengths \[4, None\]"),
        ((2, 3), (2, 3), r"which are not their numbers of samples; got lengths \[2, 3\]"),
    ],
)
def test_probes_that_tell_no_axes_apart(samples: Any, lengths: Any, says: str):
    probes = [
        Probe(nothing(), torch.zeros(n, 2), n, length)
        for n, length in zip(samples, lengths, strict=True)
    ]
    with pytest.raises(CacheError, match=says):
        AnswerLayout.learn(probes)


def test_an_unknown_dtype():
    with pytest.raises(ConfigError, match="dtype='fp8' of a cache is none of fp32, fp16, bf16"):
        AnswerLayout.learn(answers(torch.zeros(2), torch.zeros(3)), dtype="fp8")


def test_a_tap_that_was_not_called():
    taps = Taps(nn.Sequential(nn.Linear(2, 2)), ["0"])
    with taps.capture() as captured:
        pass
    with pytest.raises(TapError, match="Module '0'.* was not called"):
        AnswerLayout.learn([Probe(captured, None, n) for n in (2, 3)])


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"a": torch.zeros(4, 6), "b": 1}, r"\(6,\) a sample, and was \(5,\) .*resize or crop"),
        ({"a": torch.zeros(4), "b": 1}, r"a tensor of \(5,\) a sample .* is a tensor \(4,\) now"),
        ({"a": None, "b": 1}, "is None now"),
        ({"a": torch.zeros(4, 5).long(), "b": 1}, None),
        ({"a": torch.zeros(4, 5), "b": 2}, "answer b was 1 when the layout was learned, and is 2"),
        ({"a": torch.zeros(4, 5)}, r"was a mapping with \['a', 'b'\]"),
        ([torch.zeros(4, 5), 1], "is 2 entries now"),
    ],
)
def test_answers_that_are_built_otherwise_later(output: Any, says: str | None):
    first, second = ({"a": torch.zeros(n, 5), "b": 1} for n in (2, 3))
    layout = AnswerLayout.learn(answers(first, second))
    with pytest.raises(CacheError, match=says):
        layout.take_apart(nothing(), output)


def test_tensors_of_other_numbers_of_samples():
    first, second = ([torch.zeros(n), torch.zeros(n)] for n in (2, 3))
    layout = AnswerLayout.learn(answers(first, second))
    with pytest.raises(CacheError, match=r"of \[4, 5\] samples.*answer 0: 4, answer 1: 5"):
        layout.take_apart(nothing(), [torch.zeros(4), torch.zeros(5)])


def test_rows_and_taps_that_do_not_belong():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    taps = Taps(model, ["0"])
    probes = [Probe(*ask(taps, model, torch.ones(n, 2)), n) for n in (2, 3)]
    layout = AnswerLayout.learn(probes)
    rows = layout.take_apart(*ask(taps, model, torch.ones(4, 2)))
    with pytest.raises(CacheError, match=r"taps \['0@output'\], not with \['1@output'\]"):
        layout.put_together(rows, Taps(model, ["1"]))
    with pytest.raises(CacheError, match=r"lack \['answer'\]; they have \['tap 0@output 0'\]"):
        rows.pop("answer")
        layout.put_together(rows, taps)
