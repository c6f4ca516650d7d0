"""A teacher's answer to a batch as tensors with one row a sample, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .cache import DTYPES, Field
from .errors import CacheError, ConfigError, did_you_mean
from .losses.top_k_kl_div import SparseLogits, Tail, TopKKLDivergence, sparse_logits
from .recipe import Pair, members, output_name
from .taps import Captured, Tap, Taps
from .tuning import PRECISIONS

__all__ = ["AnswerLayout", "Probe", "SparseForm", "sparse_forms"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Probe:
    """A teacher's answer to an example batch.

    Args:
        captured: What its taps saw.
        output: What its forward returned.
        samples: How many samples the batch had.
        length: How long they were padded (tokens), where they are sequences.
    """

    captured: Captured
    output: Any
    samples: int
    length: int | None = None


@dataclass(frozen=True)
class SparseForm:
    """How many of an output's classes are kept, and how; see :func:`.losses.sparse_logits`.

    Args:
        k: Classes to keep.
        temperature: T of the loss that will read them.
        tail: What becomes of the others.
        dim: Axis of the classes, counted from the end so that batches may differ.
    """

    k: int
    temperature: float = 1.0
    tail: Tail = "bucket"
    dim: int = -1


def sparse_forms(pairs: Iterable[Pair], losses: nn.ModuleDict) -> dict[str, SparseForm]:
    """Return the outputs of which all pairs read only some classes, and the same ones.

    Args:
        pairs: Those of one teacher.
        losses: By the pair's name.

    Returns:
        By the output's name, what of it has to be kept.
    """
    found: dict[str, set[SparseForm | None]] = {}
    for pair in pairs:
        loss, form = losses[pair.name], None
        if isinstance(loss, TopKKLDivergence) and loss.k is not None:
            form = SparseForm(loss.k, loss.temperature, loss.tail, loss.dim)
        for spec in members(pair.teacher) if pair.is_output else ():
            found.setdefault(output_name(spec), set()).add(form)
    return {
        output: form
        for output, forms in found.items()
        for form in forms
        if form is not None and len(forms) == 1
    }


@dataclass(frozen=True)
class _Row:
    """A tensor that is stored: under which name, where its samples are, and what it must be."""

    name: str
    axis: int
    field: Field


@dataclass(frozen=True)
class _NotStored:
    """A tensor that no tap selects: a stand-in without values keeps its place."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Constant:
    value: Any


@dataclass(frozen=True)
class _Several:
    """A list, tuple or named tuple of nodes."""

    kind: type
    nodes: tuple[Any, ...]


@dataclass(frozen=True)
class _Named:
    nodes: Mapping[Any, Any]


class AnswerLayout:
    """How a teacher's answer to a batch is taken apart into rows, and put together again.

    An answer is what the taps saw and what the forward returned: tensors in tuples, lists and
    mappings. Each tensor becomes a field of a :class:`.cache.TeacherCache`: the axis of the samples
    (which need not be the first: DETR's heads return ``(layers, B, ...)``) is moved to the front.
    Of a tap with a selection (``neck[0]``) the selected tensors are stored; in the place of the
    others there are tensors on the device ``meta``, which cannot be computed with. A tensor that
    comes twice (returned by one module, given to the next) is stored once. Weights (``@weight``)
    are not stored.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(4, 3)
        >>> taps = Taps(net, [])
        >>> with taps.capture() as seen:
        ...     pass
        >>> layout = AnswerLayout.learn(
        ...     [Probe(seen, {"logits": net(torch.ones(n, 4))}, n) for n in (2, 3)])
        >>> layout.fields
        (Field(name='answer logits', shape=(3,), dtype='float16'),)
        >>> rows = layout.take_apart(seen, {"logits": torch.ones(5, 3)})
        >>> _, output = layout.put_together(rows, taps)
        >>> output["logits"].shape, output["logits"].dtype
        (torch.Size([5, 3]), torch.float32)
    """

    def __init__(
        self,
        fields: Iterable[Field],
        taps: Mapping[tuple[str, str], _Several],
        output: Any,
        dtype: str,
        sparse: Mapping[str, SparseForm],
    ) -> None:
        self.fields: tuple[Field, ...] = tuple(fields)
        """The fields of a record, in the order of the answer."""
        self.dtype = dtype
        self.sparse = dict(sparse)
        self._taps = dict(taps)
        self._output = output

    @classmethod
    def learn(
        cls,
        probes: Sequence[Probe],
        *,
        dtype: str = "fp16",
        sparse: Mapping[str, SparseForm] | None = None,
    ) -> AnswerLayout:
        """Find the layout from a teacher's answers to example batches.

        The axis that follows the number of samples is the samples'; axes that follow the length
        are as long as the sample. What is no tensor (``None``, numbers, strings) must be the same
        in all answers and is kept.

        Args:
            probes: Of at least two batches, which differ in their number of samples, and in their
                length where they are sequences.
            dtype: What floating tensors are stored as: ``"fp16"``, ``"bf16"`` or ``"fp32"``.
            sparse: Outputs of which only some classes are kept, by the last key of their place
                (``"logits"``, which also names an output that is a tensor itself). They come back
                as :class:`.losses.SparseLogits`.

        Raises:
            ConfigError: If `dtype` is unknown.
            CacheError: If something in the answers cannot be stored sample by sample (named, with
                the reason), the probes do not tell the axes apart, or `sparse` names no output.
            TapError: If a tapped module was not called.
        """
        if dtype not in PRECISIONS:
            raise ConfigError(
                f"dtype={dtype!r} of a cache is none of fp32, fp16, bf16."
                f"{did_you_mean(str(dtype), PRECISIONS)}"
            )
        _check_probes(probes)
        sparse = dict(sparse or {})
        learner = _Learner(probes, PRECISIONS[dtype], sparse)
        calls = [probe.captured.by_module() for probe in probes]
        taps = {}
        for key in calls[0]:
            several = [list(found.get(key, ())) for found in calls]
            taps[key] = learner.node(f"tap {key[0]}@{key[1]}", several)
        learner.wanted = None  # of the output everything is stored
        thinned = [_thinned(probe.output, sparse, fixed=True) for probe in probes]
        if absent := set(sparse) - {name for _, names in thinned for name in names}:
            name = sorted(absent)[0]
            known = _leaf_names(probes[0].output)
            raise CacheError(
                f"Only some classes of {name!r} are to be kept, but the teacher has no such "
                f"output.{did_you_mean(name, known)} It has: {', '.join(known) or 'none'}."
            )
        output = learner.node("answer", [value for value, _ in thinned])
        if not learner.fields:
            raise CacheError(
                "Nothing of the teacher's answers is stored: no tap reads a tensor, and the output "
                "has none."
            )
        return cls(learner.fields, taps, output, dtype, sparse)

    def take_apart(
        self, captured: Captured, output: Any, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """The rows of a batch's answer, by field; on the answer's device.

        Args:
            captured: What the taps saw.
            output: What the forward returned.
            generator: Random numbers for ``SparseForm(tail="sampled")``, which draws.

        Raises:
            CacheError: If the answer is not built as those that the layout was learned from, or a
                number is too large for the dtype it is stored in.
        """
        rows: dict[str, Tensor] = {}
        taker = _Taker(rows, PRECISIONS[self.dtype], self.dtype)
        calls = captured.by_module()
        self._check_taps(calls)
        for key, node in self._taps.items():
            taker.take(f"tap {key[0]}@{key[1]}", node, list(calls[key]))
        thinned, _ = _thinned(output, self.sparse, generator=generator)
        taker.take("answer", self._output, thinned)
        if len(samples := {len(row) for row in rows.values()}) > 1:
            counts = ", ".join(f"{name}: {len(row)}" for name, row in rows.items())
            raise CacheError(
                f"The answer is of {sorted(samples)} samples; expected one number. {counts}."
            )
        return rows

    def put_together(
        self,
        rows: Mapping[str, Tensor],
        taps: Taps,
        device: torch.device | str | None = None,
    ) -> tuple[Captured, Any]:
        """The answer that rows stand for, as the teacher would have given it.

        Args:
            rows: By field, as :meth:`.cache.TeacherCache.read` gives them.
            taps: The taps of the teacher; weights are read from its model.
            device: Where the answer is wanted; where the rows are by default.

        Returns:
            What the taps saw, and the output. Floating tensors are float32; mappings come back as
            dicts, tuples and lists as such.

        Raises:
            CacheError: If a field is missing, or the taps are others than those learned.
        """
        if absent := [field.name for field in self.fields if field.name not in rows]:
            raise CacheError(f"The rows lack {absent}; they have {sorted(rows)}.")
        self._check_taps([key for key in taps.keys if key[1] != "weight"])
        tensors = {field.name: _restored(rows[field.name], device) for field in self.fields}
        calls = {key: _built(node, tensors) for key, node in self._taps.items()}
        for key, weights in taps.weights().items():
            calls[key] = [_restored(weight, device) for weight in weights]
        return Captured.of(taps, calls), _built(self._output, tensors)

    def _check_taps(self, keys: Iterable[tuple[str, str]]) -> None:
        if set(keys) != set(self._taps):
            raise CacheError(
                f"The layout was learned with the taps {_keys(self._taps)}, not with {_keys(keys)}."
            )


class _Learner:
    """Builds the tree of an answer, and gathers its fields."""

    def __init__(
        self, probes: Sequence[Probe], dtype: torch.dtype, sparse: Mapping[str, SparseForm]
    ) -> None:
        self.sparse = sparse
        self.samples = tuple(probe.samples for probe in probes)
        self.lengths = tuple(probe.length for probe in probes)
        self.dtype = dtype
        self.fields: list[Field] = []
        self.wanted: set[int] | None = _selected(probes[0].captured)
        # By the tensors themselves, in all probes.
        self._known: dict[tuple[int, ...], _Row] = {}

    def node(self, name: str, values: Sequence[Any], key: str = "logits") -> Any:
        """What stands at one place of the answers; `key` is the last of its path."""
        first = values[0]
        if isinstance(first, SparseLogits) and key in self.sparse:
            # In the name, so that a cache of another form is another cache.
            form = self.sparse[key]
            name = f"{name} (top {form.k}, {form.tail}, temperature {form.temperature:g})"
        if all(isinstance(value, Tensor) for value in values):
            return self._tensor(name, values)
        kind = _kind(first)
        if any(_kind(value) is not kind for value in values):
            raise CacheError(
                f"{name} is {' and '.join(_described(value) for value in values)} in two batches; "
                "what is stored must be built alike in all."
            )
        if kind is dict:
            if any(list(value) != list(first) for value in values):
                raise CacheError(
                    f"{name} has the entries {' and '.join(str(list(v)) for v in values)} in two "
                    "batches; what is stored must be built alike in all."
                )
            return _Named(
                {k: self.node(f"{name} {k}", [value[k] for value in values], str(k)) for k in first}
            )
        if kind in (list, tuple):
            if any(len(value) != len(first) for value in values):
                raise CacheError(
                    f"{name} has {' and '.join(str(len(value)) for value in values)} entries in "
                    "two batches; what is stored must be built alike in all."
                )
            keys = map(str, getattr(first, "_fields", range(len(first))))
            nodes = [
                self.node(f"{name} {k}", [value[index] for value in values], k)
                for index, k in enumerate(keys)
            ]
            return _Several(type(first), tuple(nodes))
        if not all(_same(first, value) for value in values[1:]):
            raise CacheError(
                f"{name} is {' and '.join(_described(value) for value in values)} in two batches; "
                "what is no tensor must be the same in all. Leave it out of the teacher's answer."
            )
        return _Constant(first)

    def _tensor(self, name: str, values: Sequence[Tensor]) -> Any:
        ids = tuple(id(value) for value in values)
        if ids in self._known:
            return self._known[ids]
        if self.wanted is not None and ids[0] not in self.wanted:
            return _NotStored(tuple(values[0].shape))
        axis, shape = self._axes(name, [tuple(value.shape) for value in values])
        dtype = self.dtype if values[0].is_floating_point() else values[0].dtype
        if dtype not in _NAMES or any(value.dtype != values[0].dtype for value in values):
            dtypes = ", ".join(str(value.dtype) for value in values)
            raise CacheError(f"{name} is {dtypes} in two batches, which cannot be stored.")
        row = _Row(name, axis, Field(name, shape, _NAMES[dtype]))
        self.fields.append(row.field)
        self._known[ids] = row
        return row

    def _axes(self, name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, tuple[int, ...]]:
        """The axis of the samples, and the shape of one: -1 where it is as long as the sample."""
        seen = " and ".join(map(str, shapes))
        where = " and ".join(
            f"{n} samples" + ("" if length is None else f" of length {length}")
            for n, length in zip(self.samples, self.lengths, strict=True)
        )
        if len({len(shape) for shape in shapes}) > 1:
            raise CacheError(f"{name} is {seen} for {where}: its axes change.")
        found: list[int] = []
        own: list[int] = []
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if sizes == self.samples:
                found.append(axis)
            elif sizes == self.lengths:
                own.append(-1)
            elif len(set(sizes)) == 1:
                own.append(sizes[0])
            else:
                raise CacheError(
                    f"{name} is {seen} for {where}: axis {axis} follows neither the number of "
                    "samples nor their length, so it cannot be stored sample by sample."
                )
        if len(found) != 1:
            raise CacheError(
                f"{name} is {seen} for {where}: "
                + (
                    "no axis follows the number of samples"
                    if not found
                    else f"the axes {found} all follow the number of samples"
                )
                + ", so it cannot be stored sample by sample."
            )
        return found[0], tuple(own)


class _Taker:
    """Takes an answer apart along the tree."""

    def __init__(self, rows: dict[str, Tensor], dtype: torch.dtype, called: str) -> None:
        self.rows = rows
        self.dtype = dtype
        self.called = called

    def take(self, name: str, node: Any, value: Any) -> None:
        if isinstance(node, _Row):
            if node.name not in self.rows:
                self.rows[node.name] = self._row(node, name, value)
        elif isinstance(node, _Named):
            if not isinstance(value, Mapping) or list(value) != list(node.nodes):
                self._refuse(name, f"a mapping with {list(node.nodes)}", value)
            for key, inner in node.nodes.items():
                self.take(f"{name} {key}", inner, value[key])
        elif isinstance(node, _Several):
            if not isinstance(value, (list, tuple)) or len(value) != len(node.nodes):
                self._refuse(name, f"{len(node.nodes)} entries", value)
            for index, (inner, entry) in enumerate(zip(node.nodes, value, strict=True)):
                self.take(f"{name} {index}", inner, entry)
        elif isinstance(node, _Constant) and not _same(node.value, value):
            self._refuse(name, _described(node.value), value)

    def _refuse(self, name: str, expected: str, value: Any) -> None:
        raise CacheError(
            f"{name} was {expected} when the layout was learned, and is {_described(value)} now: "
            "the teacher's answers are not built alike."
        )

    def _row(self, node: _Row, name: str, value: Any) -> Tensor:
        field = node.field
        row = value.detach().movedim(node.axis, 0) if isinstance(value, Tensor) else None
        fits = row is not None and row.ndim == len(field.shape) + 1
        if row is None or not fits or len({*_ragged_sizes(field, row)}) > 1:
            self._refuse(name, f"a tensor of {field.shape} a sample", value)
        assert row is not None
        if any(own not in (-1, size) for own, size in zip(field.shape, row.shape[1:], strict=True)):
            raise CacheError(
                f"{name} is {tuple(row.shape[1:])} a sample, and was {field.shape} when the layout "
                "was learned. All samples must have one size: resize or crop the images alike."
            )
        if not row.is_floating_point():
            if row.dtype != field.torch_dtype:
                self._refuse(name, f"of dtype {field.dtype}", value)
            return row
        stored = row.to(self.dtype)
        if stored.dtype != row.dtype and bool(stored.isinf().any()):
            lost = stored.isinf() & ~row.isinf()
            if bool(lost.any()):
                largest = float(row[lost].abs().max())
                raise CacheError(
                    f"{name} has numbers up to {largest:.3g}, which {self.called} cannot hold "
                    f"(at most {torch.finfo(self.dtype).max:.3g}). Store it as 'bf16' or 'fp32'."
                )
        return stored


def _check_probes(probes: Sequence[Probe]) -> None:
    samples = [probe.samples for probe in probes]
    lengths = [probe.length for probe in probes]
    if len(set(samples)) < 2:
        raise CacheError(
            "The axis of the samples is found from batches of different numbers of samples, got "
            f"{samples}."
        )
    if any(length is not None for length in lengths):
        if None in lengths or len(set(lengths)) < 2 or lengths == samples:
            raise CacheError(
                "The axes as long as the samples are found from batches of different lengths, "
                f"which are not their numbers of samples; got lengths {lengths} of {samples} "
                "samples."
            )


def _selected(captured: Captured) -> set[int]:
    """The tensors that some tap selects."""
    found: set[int] = set()
    for spec in captured.taps.specs:
        if Tap.parse(spec).side != "weight":
            found.update(id(tensor) for tensor in captured.tensors(spec))
    return found


def _kind(value: Any) -> type:
    """How a value is taken apart; a named tuple is one of its own."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, Mapping):
        return dict
    if isinstance(value, list):
        return list
    return tuple if isinstance(value, tuple) else object


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return False


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Mapping):
        return f"a mapping with {list(value)}"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} entries"
    return f"an object {type(value).__name__}"


def _keys(keys: Iterable[tuple[str, str]]) -> list[str]:
    return sorted(f"{name}@{side}" for name, side in keys)


def _ragged_sizes(field: Field, row: Tensor) -> list[int]:
    return [size for own, size in zip(field.shape, row.shape[1:], strict=False) if own == -1]


def _restored(row: Tensor, device: torch.device | str | None) -> Tensor:
    # Narrow tensors are sent and then widened.
    row = row if device is None else row.to(device, non_blocking=True)
    return row.float() if row.is_floating_point() else row


def _built(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, _Row):
        return tensors[node.name].movedim(0, node.axis)
    if isinstance(node, _NotStored):
        return torch.empty(node.shape, device="meta")
    if isinstance(node, _Named):
        return {key: _built(inner, tensors) for key, inner in node.nodes.items()}
    if isinstance(node, _Several):
        entries = [_built(inner, tensors) for inner in node.nodes]
        if node.kind is not list and not hasattr(node.kind, "_fields"):
            return tuple(entries)
        return node.kind(*entries) if hasattr(node.kind, "_fields") else entries
    return node.value


def _leaf_names(output: Any) -> list[str]:
    """What `sparse` may name: the last keys of the tensors in an output."""
    found: list[str] = []

    def note(key: str, tensor: Tensor) -> Tensor:
        found.append(key)
        return tensor

    _each_leaf(output, "logits", note)
    return list(dict.fromkeys(found))


def _thinned(
    output: Any,
    sparse: Mapping[str, SparseForm],
    *,
    fixed: bool = False,
    generator: Generator | None = None,
) -> tuple[Any, set[str]]:
    """An output with those logits made sparse, and which were found.

    `fixed` draws without touching the random state.
    """
    if not sparse:
        return output, set()
    found: set[str] = set()

    def thin(key: str, logits: Tensor) -> Any:
        if key not in sparse:
            return logits
        found.add(key)
        form = sparse[key]
        draws = torch.Generator(logits.device).manual_seed(0) if fixed else generator
        kept = sparse_logits(
            logits,
            form.k,
            temperature=form.temperature,
            tail=form.tail,
            dim=form.dim,
            generator=draws,
        )
        small = logits.shape[form.dim] <= torch.iinfo(torch.int16).max
        indices = kept.indices.to(torch.int16 if small else torch.int32)
        return SparseLogits(kept.values, indices, kept.tail)

    return _each_leaf(output, "logits", thin), found


def _each_leaf(value: Any, key: str, change: Callable[[str, Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(key, value)
    if isinstance(value, SparseLogits):
        return value
    if isinstance(value, Mapping):
        return {k: _each_leaf(v, str(k), change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_each_leaf(v, str(i), change) for i, v in enumerate(value)]
        if isinstance(value, list):
            return entries
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value
