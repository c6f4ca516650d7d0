"""The contract every public loss keeps, run over `losses.__all__`.

A new loss is covered by one entry in SAMPLES. What a loss must stand beyond this (reference values,
identities, its own errors) lies in its own file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, ShapeError

Shape = tuple[int, ...]
Tensors = Tensor | tuple[Tensor, ...]
Make = Callable[[int, Generator], Tensors]  # (rows, random numbers) -> float64 tensors


@dataclass(frozen=True)
class Sample:
    """How to call a loss: everything but the number of rows, which is always axis 0.

    A shape is written without the rows. Where a side is several tensors, give several shapes.
    """

    module: type[nn.Module]
    student: Shape | tuple[Shape, ...]
    teacher: Shape | tuple[Shape, ...] | Make | None = None  # None: the student's shape
    target: Make | None = None  # a third positional argument
    positions: Shape | None = ()  # of the weight; None: the loss takes none
    tiles: Shape = ()  # axes (0 is the rows) whose repetition leaves the value as it is
    mean_over_rows: bool = True  # the value is the mean of the values of single rows
    zero_at_equality: bool = True
    non_negative: bool = True
    fullgraph: bool = True  # compiles in one graph; False: the docstring says why not
    stateless: bool = True  # the module has no parameters; False: its own tests compare it
    float16_gradient: bool = True  # at 1e4 it is within float16; False: the docstring says so
    scale: float = 1.0
    options: dict[str, object] = field(default_factory=dict)

    def tensors(
        self, rows: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> list[Tensors]:
        """Student, teacher and, if wanted, the target; the student asks for a gradient."""
        generator = torch.Generator().manual_seed(seed)
        teacher = self.student if self.teacher is None else self.teacher
        made: list[Tensors] = [self._draw(self.student, rows, generator)]
        made.append(
            teacher(rows, generator) if callable(teacher) else self._draw(teacher, rows, generator)
        )
        if self.target is not None:
            made.append(self.target(rows, generator))
        made = [each(lambda t: t.to(dtype) if t.is_floating_point() else t, x) for x in made]
        each(Tensor.requires_grad_, made[0])
        return made

    def _draw(self, shape: Shape | tuple[Shape, ...], rows: int, generator: Generator) -> Tensors:
        if shape and isinstance(shape[0], tuple):
            return tuple(self._draw(s, rows, generator) for s in shape)  # type: ignore
        return self.scale * torch.randn((rows, *shape), generator=generator, dtype=torch.float64)

    def weight(self, rows: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
        assert self.positions is not None
        generator = torch.Generator().manual_seed(1)
        return torch.rand((rows, *self.positions), generator=generator, dtype=dtype)


def each(change: Callable[[Tensor], Tensor], tensors: Tensors) -> Tensors:
    """Apply a change to one tensor or to each of several."""
    if isinstance(tensors, tuple):
        return tuple(change(t) for t in tensors)
    return change(tensors)


def leaves(tensors: Tensors) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)


def pack(tensors: tuple[Tensor, ...], like: Tensors) -> Tensors:
    return tensors if isinstance(like, tuple) else tensors[0]


def detached(tensors: Tensors) -> Tensors:
    return each(Tensor.detach, tensors)


def normal(*shape: int) -> Make:
    return lambda rows, g: torch.randn((rows, *shape), generator=g, dtype=torch.float64)


def labels(classes: int, *shape: int) -> Make:
    return lambda rows, g: torch.randint(0, classes, (rows, *shape), generator=g)


SAMPLES: dict[str, Sample] = {
    "activation_boundaries": Sample(
        losses.ActivationBoundaries,
        (4, 3, 2),
        positions=(3, 2),
        tiles=(2, 3),
        zero_at_equality=False,
    ),
    "attention_map": Sample(
        losses.AttentionMap,
        (2, 4, 4),
        positions=(4,),
        tiles=(2, 3),
        scale=2.0,
        options={"form": "scores"},
    ),
    "attention_qk": Sample(losses.AttentionQK, ((2, 4, 3), (2, 4, 3)), positions=(4,), tiles=(2,)),
    "attention_transfer": Sample(losses.AttentionTransfer, (4, 3, 2), tiles=(2, 3)),
    "bounded_regression": Sample(
        losses.BoundedRegression, (4,), target=normal(4), zero_at_equality=False
    ),
    "channel_wise_distillation": Sample(
        losses.ChannelWiseDistillation, (3, 4, 2), positions=(3,), tiles=(1, 2, 3)
    ),
    "confidence_weighted_cross_entropy": Sample(
        losses.ConfidenceWeightedCrossEntropy,
        (5, 2, 3),
        target=labels(5, 2, 3),
        positions=None,
        mean_over_rows=False,  # the weights are normalised within the batch
        zero_at_equality=False,
    ),
    "cross_entropy_kl_div": Sample(
        losses.CrossEntropyKLDivergence,
        (5, 2, 3),
        target=labels(5, 2, 3),
        positions=(2, 3),
        zero_at_equality=False,
        options={"label_smoothing": 0.1},
    ),
    "decoupled_kd": Sample(losses.DecoupledKD, (7,), target=labels(7), scale=3.0),
    "dist": Sample(losses.DIST, (7,), positions=None, mean_over_rows=False, scale=3.0),
    "factor_transfer": Sample(losses.FactorTransfer, (4, 3, 2), tiles=(2, 3)),
    "feature_imitation": Sample(losses.FeatureImitation, (3, 4, 2), positions=(4, 2), tiles=(2, 3)),
    "focal_global": Sample(
        losses.FocalGlobal,
        (3, 4, 5),
        target=lambda rows, g: (
            torch.rand((rows, 3, 2, 2), generator=g, dtype=torch.float64).sort(2)[0].flatten(2)
        ),
        stateless=False,
        options={"foreground": 1.0, "background": 0.5},
    ),
    "focal_kl_div": Sample(losses.FocalKLDivergence, (7,), scale=3.0),
    "fsp": Sample(losses.FSP, ((3, 4, 2), (2, 4, 2)), tiles=(2, 3), float16_gradient=False),
    # Not the mean over pixels, which share one gradient: see its docstring.
    "gradient_attention_transfer": Sample(losses.GradientAttentionTransfer, (3, 4, 2)),
    "hidden_state_transfer": Sample(
        losses.HiddenStateTransfer,
        (4, 5),
        positions=(4,),
        tiles=(1,),
        options={"normalize": "layer_norm", "mean_weight": 0.5, "variance_weight": 0.3},
    ),
    "hint": Sample(losses.Hint, (5, 3), positions=(5,), tiles=(1,)),
    "kl_div": Sample(losses.KLDivergence, (7,), scale=3.0, options={"temperature": 4.0}),
    "l2_logits": Sample(losses.L2Logits, (7, 2), positions=(2,), tiles=(2,), scale=3.0),
    "localization_distillation": Sample(losses.LocalizationDistillation, (4 * 5,)),
    "logit_standardisation": Sample(losses.LogitStandardisation, (7,), scale=3.0),
    "neuron_selectivity": Sample(losses.NeuronSelectivity, (3, 4, 2), tiles=(2, 3)),
    "pair_wise": Sample(losses.PairWise, (3, 4, 2), tiles=(2, 3)),
    "pearson_distance": Sample(
        losses.PearsonDistance, (3, 4, 2), positions=None, tiles=(2, 3), mean_over_rows=False
    ),
    # Two classes have one order; the permutations are in its own file.
    "permuted_dark_knowledge": Sample(
        losses.PermutedDarkKnowledge,
        (2, 3, 2),
        positions=(3, 2),
        tiles=(2, 3),
        zero_at_equality=False,
        scale=3.0,
        options={"temperature": 2.0},
    ),
    "pixel_wise": Sample(losses.PixelWise, (4, 2, 3), positions=(2, 3), tiles=(2, 3), scale=3.0),
    "projected_imitation": Sample(
        losses.ProjectedImitation,
        (3, 4, 2),
        (5, 4, 2),
        positions=(4, 2),
        tiles=(2, 3),
        zero_at_equality=False,
        stateless=False,
        options={"kernel": torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)},
    ),
    "reconstruction": Sample(losses.Reconstruction, (3, 4, 2), positions=(4, 2), tiles=(2, 3)),
    "rkd_angle": Sample(losses.RKDAngle, (5,), positions=None, mean_over_rows=False),
    "rkd_distance": Sample(losses.RKDDistance, (5,), positions=None, mean_over_rows=False),
    "self_attention_relations": Sample(
        losses.SelfAttentionRelations,
        ((4, 6), (4, 6)),
        positions=(4,),
        tiles=(1,),
        options={"relation_heads": 2},
    ),
    "similarity_preserving": Sample(
        losses.SimilarityPreserving, (2,), positions=None, mean_over_rows=False
    ),
    "soft_cross_entropy": Sample(
        losses.SoftCrossEntropy,
        (4, 2, 3),
        positions=(2, 3),
        tiles=(2, 3),
        zero_at_equality=False,
        options={"temperature": 3.0},
    ),
    "top_k_kl_div": Sample(
        losses.TopKKLDivergence,
        (2, 7),
        lambda rows, g: tuple(losses.sparse_logits(3 * normal(2, 7)(rows, g), 3)),
        positions=(2,),
        tiles=(1,),
        zero_at_equality=False,
        options={"temperature": 2.0},
    ),
    "weight_matching": Sample(losses.WeightMatching, (3, 2, 2), positions=None, stateless=False),
    "weighted_soft_cross_entropy": Sample(
        losses.WeightedSoftCrossEntropy,
        (4, 2, 3),
        positions=(2, 3),
        tiles=(2, 3),
        zero_at_equality=False,
    ),
}

# Public names that take a student and a teacher, but are no losses.
METRICS: set[str] = {"boundary_disagreement"}

# The student of one is hidden states and the matrix of a head, which has no rows; the others bring
# networks along. Each runs the contract in its own file.
APART = {
    "holistic": "Holistic",
    "linear_kl_div": "LinearKLDivergence",
    "paraphraser_loss": "ParaphrasedFactorTransfer",
}


def takes_a_pair(thing: object) -> bool:
    function = thing.forward if inspect.isclass(thing) and issubclass(thing, nn.Module) else thing
    parameters = list(inspect.signature(function).parameters) if callable(function) else []
    return [p for p in parameters if p != "self"][:2] == ["student", "teacher"]


PUBLIC = {name: getattr(losses, name) for name in losses.__all__}
PAIRED = sorted(name for name, thing in PUBLIC.items() if takes_a_pair(thing))
FUNCTIONS = [name for name in PAIRED if name.islower() and name not in METRICS | set(APART)]
MODULES = [name for name in PAIRED if not name.islower() and name not in APART.values()]


def those(condition: Callable[[Sample], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [n for n in FUNCTIONS if n in SAMPLES and condition(SAMPLES[n])]
    )


every_loss = those(lambda sample: True)
weighted_loss = those(lambda sample: sample.positions is not None)
mean_loss = those(lambda sample: sample.mean_over_rows)


def call(name: str, *tensors: Tensors, weight: Tensor | None = None, total=None) -> Tensor:
    """Call the function, whose word for the weight may be `mask`."""
    function, sample = getattr(losses, name), SAMPLES[name]
    given_options = dict(sample.options)
    if sample.positions is not None:
        word = "mask" if "mask" in inspect.signature(function).parameters else "weight"
        given_options |= {"total": total, word: weight}
    return function(*tensors, **given_options)


def some_weight(name: str, rows: int = 6) -> dict[str, object]:
    """A weight and a total for the losses that take them."""
    sample = SAMPLES[name]
    return {} if sample.positions is None else {"weight": sample.weight(rows), "total": 1.7}


def reference(name: str, rows: int = 6) -> Tensor:
    return call(name, *SAMPLES[name].tensors(rows)).detach()


def grads(value: Tensor, student: Tensors) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, leaves(student))


def test_every_public_loss_has_a_sample_and_a_module():
    assert set(SAMPLES) == set(FUNCTIONS), "add one entry to SAMPLES for a new loss"
    assert sorted(sample.module.__name__ for sample in SAMPLES.values()) == MODULES
    assert list(losses.__all__) == sorted(losses.__all__)


@every_loss
def test_signature(name: str):
    sample = SAMPLES[name]
    parameters = list(inspect.signature(getattr(losses, name)).parameters.values())
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == ["student", "teacher"] + ["target"] * (sample.target is not None)
    forward = list(inspect.signature(sample.module.forward).parameters)
    last = [] if sample.positions is None else ["weight", "total"]
    assert forward == ["self", *positional, *last]


SECTIONS = (
    ".. math::", "Args:", "Returns:", "Raises:", "Reference:", "Lecture:", "When it helps:",
    "Example:", ">>> ",
)  # fmt: skip


@every_loss
def test_documented(name: str):
    text = inspect.getdoc(getattr(losses, name)) or ""
    for section in SECTIONS:
        assert section in text, f"{name} has no {section}"


@those(lambda sample: sample.stateless)
def test_module_equals_function_and_keeps_no_state(name: str):
    sample = SAMPLES[name]
    module = sample.module(**sample.options)
    tensors, options = sample.tensors(), some_weight(name)
    assert torch.equal(module(*tensors, **options), call(name, *tensors, **options))
    assert not module.state_dict() and not list(module.parameters())


@every_loss
def test_gradient_is_exact(name: str):
    student, *others = SAMPLES[name].tensors(rows=3)
    options = some_weight(name, rows=3)

    def loss(*parts: Tensor) -> Tensor:
        return call(name, pack(parts, student), *others, **options)

    assert torch.autograd.gradcheck(loss, leaves(student), eps=1e-6, atol=1e-7, rtol=1e-6)


@every_loss
def test_the_reference_backend_agrees_and_has_second_derivatives(name: str):
    student, *others = SAMPLES[name].tensors(rows=3)
    options = some_weight(name, rows=3)
    expected = call(name, student, *others, **options)

    def loss(*parts: Tensor) -> Tensor:
        return call(name, pack(parts, student), *others, **options)

    with losses.backend("reference"):
        value = call(name, student, *others, **options)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        for a, b in zip(grads(value, student), grads(expected, student), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert torch.autograd.gradgradcheck(loss, leaves(student), eps=1e-6, atol=1e-5, rtol=1e-4)


@every_loss
def test_float32_agrees_with_float64(name: str):
    student, *others = SAMPLES[name].tensors()
    exact = call(name, student, *others)
    singles = SAMPLES[name].tensors(dtype=torch.float32)
    value = call(name, *singles)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads(value, singles[0]), grads(exact, student), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@every_loss
def test_only_the_student_gets_a_gradient(name: str):
    student, *others = SAMPLES[name].tensors()
    rest = [t for other in others for t in leaves(other) if t.is_floating_point()]
    options = {k: torch.as_tensor(v) for k, v in some_weight(name).items()}
    rest += [option.requires_grad_() for option in options.values()]
    for tensor in rest:
        tensor.requires_grad_()
    call(name, student, *others, **options).backward()
    for tensor in leaves(student):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in rest)


@every_loss
def test_works_without_any_gradient(name: str):
    tensors = SAMPLES[name].tensors()
    with torch.no_grad():
        value = call(name, *tensors)
    assert not value.requires_grad
    torch.testing.assert_close(value, reference(name), rtol=1e-12, atol=0)


@every_loss
def test_inputs_stay_as_they_were(name: str):
    tensors = SAMPLES[name].tensors(dtype=torch.float32)
    flat = [leaf for tensor in tensors for leaf in leaves(tensor)]
    before = [tensor.detach().clone() for tensor in flat]
    call(name, *tensors).backward()
    assert all(torch.equal(a.detach(), b) for a, b in zip(flat, before, strict=True))


@every_loss
def test_zero_at_equality(name: str):
    sample = SAMPLES[name]
    student, *others = sample.tensors()
    if sample.zero_at_equality:
        assert sample.teacher is None, "equality needs the same shapes"
        value = call(name, student, detached(student), *others[1:])
        value.backward()
        assert value.item() == pytest.approx(0.0, abs=1e-13)
        for tensor in leaves(student):
            assert tensor.grad is not None and tensor.grad.abs().max() < 1e-7
    else:
        assert abs(reference(name)) > 0


@every_loss
def test_shapes_can_be_found_without_data(name: str):
    tensors = [each(lambda t: t.detach().to("meta"), x) for x in SAMPLES[name].tensors()]
    assert call(name, *tensors).shape == ()


@mean_loss
@pytest.mark.parametrize("times", [2, 5])
def test_value_does_not_depend_on_the_number_of_rows(name: str, times: int):
    tensors = [each(lambda t: torch.cat([t] * times), detached(x)) for x in SAMPLES[name].tensors()]
    torch.testing.assert_close(call(name, *tensors), reference(name), rtol=1e-12, atol=0)


@those(lambda sample: not sample.mean_over_rows)
def test_value_does_not_grow_with_the_number_of_rows(name: str):
    """Relations between rows: about the same for 8 rows as for 24, in the mean over batches."""

    def mean(rows: int) -> float:
        values = [call(name, *SAMPLES[name].tensors(rows, seed=seed)) for seed in range(60)]
        return torch.stack([value.detach() for value in values]).mean().item()

    assert mean(24) == pytest.approx(mean(8), rel=0.25)


@those(lambda sample: bool(sample.tiles))
def test_value_does_not_depend_on_the_map(name: str):
    sample = SAMPLES[name]

    def tile(tensor: Tensor) -> Tensor:
        return tensor.repeat([2 if axis in sample.tiles else 1 for axis in range(tensor.ndim)])

    tensors = [each(tile, detached(tensor)) for tensor in sample.tensors()]
    torch.testing.assert_close(call(name, *tensors), reference(name), rtol=1e-12, atol=0)


@weighted_loss
def test_weights_select_and_scale(name: str):
    sample = SAMPLES[name]
    tensors = sample.tensors()
    ones = torch.ones_like(sample.weight())
    torch.testing.assert_close(call(name, *tensors, weight=ones), reference(name))
    first = ones.clone()
    first[2:] = 0
    torch.testing.assert_close(
        call(name, *tensors, weight=first.bool()),
        call(name, *(each(lambda t: t[:2], tensor) for tensor in tensors)),
    )
    weight = sample.weight()
    torch.testing.assert_close(
        call(name, *tensors, weight=weight), call(name, *tensors, weight=7 * weight)
    )


@weighted_loss
@pytest.mark.parametrize("as_tensor", [False, True])
def test_total_replaces_the_normaliser(name: str, as_tensor: bool):
    sample = SAMPLES[name]
    tensors, weight = sample.tensors(), sample.weight()
    total = torch.tensor(12.5) if as_tensor else 12.5
    torch.testing.assert_close(
        call(name, *tensors, weight=weight, total=total) * 12.5,
        call(name, *tensors, weight=weight) * weight.sum(),
    )
    torch.testing.assert_close(
        call(name, *tensors, total=total) * 12.5, reference(name) * weight.numel()
    )


@every_loss
@pytest.mark.parametrize("case", ["no rows", "zero weights", "zero total", "zero tensor total"])
def test_nothing_to_compare_is_zero_with_a_graph(name: str, case: str):
    sample = SAMPLES[name]
    if case != "no rows" and sample.positions is None:
        pytest.skip("takes no weight")
    rows = 0 if case == "no rows" else 6
    tensors = sample.tensors(rows)
    weight = torch.zeros_like(sample.weight(rows)) if case == "zero weights" else None
    total = {"zero total": 0, "zero tensor total": torch.tensor(0.0)}.get(case)
    value = call(name, *tensors, weight=weight, total=total)
    value.backward()
    assert value.item() == 0.0
    for tensor in leaves(tensors[0]):
        assert tensor.grad is not None and torch.equal(tensor.grad, torch.zeros_like(tensor))


def check_finite(name: str, student: Tensors, *others: Tensors) -> None:
    student = each(lambda t: t.detach().clone().requires_grad_(), student)
    value = call(name, student, *others)
    value.backward()
    assert torch.isfinite(value)
    assert value >= 0 or not SAMPLES[name].non_negative
    for tensor in leaves(student):
        assert tensor.grad is not None and not tensor.grad.isnan().any()
        too_large = tensor.dtype == torch.float16 and not SAMPLES[name].float16_gradient
        assert too_large or torch.isfinite(tensor.grad).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_at_extreme_inputs(name: str, dtype: torch.dtype):
    def extreme(tensor: Tensor) -> Tensor:
        return (1e4 * tensor.detach().sign()).to(dtype) if tensor.is_floating_point() else tensor

    sample = SAMPLES[name]
    student, teacher, *rest = (each(extreme, tensor) for tensor in sample.tensors())
    check_finite(name, student, teacher, *rest)
    check_finite(name, each(torch.zeros_like, student), teacher, *rest)
    if sample.teacher is None:
        check_finite(name, each(torch.neg, teacher), teacher, *rest)
        check_finite(name, teacher, teacher, *rest)


@every_loss
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_degenerate_inputs(name: str, rows: int, dtype: torch.dtype):
    """One row, duplicated rows, maps of zeros and of a constant, on either side or both."""

    def floats(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda t: change(t.detach()) if t.is_floating_point() else t

    cases = [
        floats(lambda t: t),
        floats(lambda t: t[:1].expand_as(t)),
        floats(torch.zeros_like),
        floats(lambda t: torch.full_like(t, 3.0)),
        floats(lambda t: 1e-30 * t),
    ]
    student, teacher, *rest = SAMPLES[name].tensors(rows, dtype=dtype)
    for left in cases:
        for right in cases:
            check_finite(name, each(left, student), each(right, teacher), *rest)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(name: str, dtype: torch.dtype):
    def single(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    tensors = [detached(tensor) for tensor in SAMPLES[name].tensors(dtype=dtype)]
    value = call(name, *tensors)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, call(name, *(each(single, tensor) for tensor in tensors)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype):
    student, *others = SAMPLES[name].tensors(dtype=torch.float32)
    expected = call(name, student, *others)
    expected_grads = grads(expected, student)
    with torch.autocast("cpu", dtype=dtype):
        value = call(name, student, *others)
    assert torch.equal(value, expected)
    for a, b in zip(grads(value, student), expected_grads, strict=True):
        assert torch.equal(a, b)


@every_loss
def test_mixed_precision_pairs(name: str):
    def change(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return lambda t: t.to(dtype) if t.is_floating_point() else t

    student, teacher, *others = SAMPLES[name].tensors(dtype=torch.float32)
    half = each(change(torch.bfloat16), teacher)
    value = call(name, student, half, *others)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, call(name, student, each(change(torch.float), half), *others))


@every_loss
def test_wrong_shapes_are_named(name: str):
    student, teacher, *others = SAMPLES[name].tensors()
    smaller = each(lambda t: t[:1], teacher)  # would broadcast without a word
    with pytest.raises(ShapeError) as caught:
        call(name, student, smaller, *others)
    assert str(tuple(leaves(student)[0].shape)) in str(caught.value)
    assert str(tuple(leaves(smaller)[0].shape)) in str(caught.value)


@weighted_loss
def test_wrong_weight_and_total_are_named(name: str):
    sample = SAMPLES[name]
    tensors = sample.tensors()
    with pytest.raises(ShapeError, match="weight must hold one number a position"):
        call(name, *tensors, weight=sample.weight()[:1])
    with pytest.raises(ShapeError, match="total must be one number"):
        call(name, *tensors, total=torch.ones(2))
    for total in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="total must be a finite number"):
            call(name, *tensors, total=total)


@every_loss
@pytest.mark.parametrize("layout", ["strided", "expanded", "channels last"])
def test_memory_layout_does_not_matter(name: str, layout: str):
    def arrange(tensor: Tensor) -> Tensor:
        if layout == "channels last":
            maps = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
            return tensor.detach().clone(memory_format=maps)
        if layout == "expanded":
            return tensor[:1].detach().expand(tensor.shape)
        return tensor.detach().mT.contiguous().mT if tensor.ndim > 1 else tensor.detach()

    arranged = [each(arrange, tensor) for tensor in SAMPLES[name].tensors()]
    plain = [each(lambda t: t.contiguous().clone(), tensor) for tensor in arranged]
    for tensors in (arranged, plain):
        each(Tensor.requires_grad_, tensors[0])
    value, expected = call(name, *arranged), call(name, *plain)
    torch.testing.assert_close(value, expected)
    for a, b in zip(grads(value, arranged[0]), grads(expected, plain[0]), strict=True):
        torch.testing.assert_close(a, b)


@mean_loss
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 9), seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 1, 300]))
def test_average_over_rows(name: str, rows: int, seed: int, spread: float):
    """Any number of rows, 0 and 1 included: the loss is the mean of the losses of its rows."""

    def stretch(tensor: Tensor) -> Tensor:
        return spread * tensor.detach() if tensor.is_floating_point() else tensor

    tensors = [each(stretch, tensor) for tensor in SAMPLES[name].tensors(rows, seed=seed)]
    value = call(name, *tensors)
    single = [
        call(name, *(each(lambda t, row=row: t[row : row + 1], tensor) for tensor in tensors))
        for row in range(rows)
    ]
    expected = torch.stack(single).mean() if single else torch.zeros(())
    torch.testing.assert_close(value, expected.double(), rtol=1e-9, atol=1e-9)


def check_compiled(name: str, function: Callable[..., Tensor]) -> None:
    student, *others = SAMPLES[name].tensors()
    options = SAMPLES[name].options
    value = function(student, *others, **options)
    expected = getattr(losses, name)(student, *others, **options)
    torch.testing.assert_close(value, expected)
    for a, b in zip(grads(value, student), grads(expected, student), strict=True):
        torch.testing.assert_close(a, b)


@every_loss
def test_compiles_in_one_graph(name: str):
    if not SAMPLES[name].fullgraph:
        assert "torch.compile" in (inspect.getdoc(getattr(losses, name)) or "")
        return
    compiled = torch.compile(getattr(losses, name), backend="aot_eager", fullgraph=True)
    check_compiled(name, compiled)


@every_loss
@pytest.mark.slow
def test_the_compiled_backend_agrees(name: str):
    def function(*tensors: Tensor, **options: object) -> Tensor:
        with losses.backend("compiled"):
            return getattr(losses, name)(*tensors, **options)

    check_compiled(name, function)


@every_loss
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_without_waiting_for_it(name: str):
    cpu = SAMPLES[name].tensors()
    options = some_weight(name)
    expected = call(name, *cpu, **options)
    expected_grads = grads(expected, cpu[0])
    student, *others = (each(lambda t: t.detach().cuda(), tensor) for tensor in cpu)
    each(Tensor.requires_grad_, student)
    moved = {k: torch.as_tensor(v).cuda() for k, v in options.items()}
    grads(call(name, student, *others, **moved), student)  # warm up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = call(name, student, *others, **moved)
        found = grads(value, student)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), expected)
    for a, b in zip(found, expected_grads, strict=True):
        torch.testing.assert_close(a.cpu(), b)
