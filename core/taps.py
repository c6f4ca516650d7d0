"""Read (and early-exit from) a network by module name.

A *tap* is written as one string::

    neck                    every tensor the module ``neck`` returns, of every call
    neck[0]   neck[1:3]     the first tensor; the second and third
    neck[0,2,-1]            these, in this order
    head.conv@input         what went into the module instead of what came out
    head.conv@weight        the module's own weight, whatever it was called with
    backbone.layer*         a glob over one name; ``**`` crosses dots

A head that is shared over pyramid levels is called once a level: all calls are kept, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TapError, did_you_mean

__all__ = ["Captured", "Tap", "Taps", "flatten_tensors"]

_SIDES = ("output", "input", "weight")
_SPEC = re.compile(r"^(?P<path>[^@\[\]]+)(?:@(?P<side>\w+))?(?:\[(?P<select>[-\d:,]+)\])?$")


class _StopForward(BaseException):
    """Ends a forward whose remaining part nobody reads.

    A ``BaseException``, so that no ``except Exception`` in a model swallows it.
    """


def flatten_tensors(value: Any) -> list[Tensor]:
    """List the tensors in nested tuples, lists, mappings and model outputs, in order.

    Example:
        >>> import torch
        >>> [t.shape[0] for t in flatten_tensors((torch.ones(1), {"a": [torch.ones(2)]}, None))]
        [1, 2]
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in flatten_tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in flatten_tensors(v)]
    return []


@dataclass(frozen=True)
class Tap:
    """One parsed tap.

    Args:
        path: Dotted module name or glob.
        side: ``"output"``, ``"input"`` or ``"weight"``.
        select: Which of the flattened tensors; ``None`` is all of them.
    """

    path: str
    side: str = "output"
    select: slice | tuple[int, ...] | None = None

    @classmethod
    def parse(cls, spec: str) -> Tap:
        """Parse ``path[@side][selection]``.

        Raises:
            TapError: If the string is not of that form.

        Example:
            >>> Tap.parse("neck@input[1:3]")
            Tap(path='neck', side='input', select=slice(1, 3, None))
            >>> Tap.parse("neck[0]").select
            slice(0, 1, None)
        """
        match = _SPEC.match(spec) if isinstance(spec, str) else None
        if match is None or (match["side"] or "output") not in _SIDES:
            raise TapError(
                f"Tap {spec!r} is not of the form 'module.path', 'module.path@input', "
                "'module.path@weight' or 'module.path[0:2]'."
            )
        return cls(match["path"], match["side"] or "output", _parse_select(spec, match["select"]))

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the named modules that this tap reads, in the model's own order.

        Raises:
            TapError: If there is none; offers the nearest names.
        """
        # A module shared under two names answers to both; a glob reads it once. The model itself
        # has an empty name, which every `*` would match.
        if "*" not in self.path and "?" not in self.path:
            named = dict(model.named_modules(remove_duplicate=False))
            found = {self.path: named[self.path]} if self.path in named else {}
        else:
            named = dict(model.named_modules())
            pattern = _glob_to_regex(self.path)
            found = {n: module for n, module in named.items() if n and pattern.fullmatch(n)}
        if not found:
            top = ", ".join(name for name, _ in model.named_children())
            raise TapError(
                f"No module of {type(model).__name__} is called {self.path!r}."
                f"{did_you_mean(self.path, named)} Its top-level modules are: {top or 'none'}."
            )
        if self.side == "weight":
            for name, module in found.items():
                if not isinstance(getattr(module, "weight", None), Tensor):
                    raise TapError(
                        f"Module {name!r} ({type(module).__name__}) has no weight to tap; expected "
                        "a convolution, a linear layer or the like."
                    )
        return found

    def choose(self, tensors: list[Tensor], spec: str) -> list[Tensor]:
        """Return the selected ones of what was read.

        Raises:
            TapError: If there are no such.
        """
        try:
            if isinstance(self.select, tuple):
                chosen = [tensors[index] for index in self.select]
            else:
                chosen = tensors if self.select is None else tensors[self.select]
        except IndexError:
            chosen = []
        if not chosen:
            raise TapError(
                f"Tap {spec!r} selects none of the {len(tensors)} tensors read there, or one that "
                "is not among them."
            )
        return chosen


def _parse_select(spec: str, text: str | None) -> slice | tuple[int, ...] | None:
    if text is None:
        return None
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(","))
        parts = [int(part) if part else None for part in text.split(":")]
        if len(parts) == 1 and parts[0] is not None:
            index = parts[0]
            return slice(index, index + 1 if index != -1 else None)
        if 2 <= len(parts) <= 3 and parts[2:] != [0]:
            return slice(*parts)
    except ValueError:
        pass
    raise TapError(f"Selection [{text}] of tap {spec!r} is no index, list of indices or slice.")


def _glob_to_regex(path: str) -> re.Pattern[str]:
    escaped = re.escape(path).replace(r"\*\*", ".*").replace(r"\?", "[^.]")
    return re.compile(escaped.replace(r"\*", "[^.]*"))


@dataclass
class _Call:
    """One call of a tapped module: what it returned, and the versions its tensors had then."""

    value: Any
    versions: list[int] = field(default_factory=list)


class Captured:
    """What the taps saw in one forward."""

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._calls: dict[tuple[str, str], list[_Call]] = {key: [] for key in taps.keys}

    def calls(self, spec: str) -> list[Any]:
        """Return what the tapped modules returned (or got), one entry a call, as it was.

        Raises:
            TapError: If a module was never called, or a tensor was changed in place afterwards.
        """
        values = []
        for key in self._taps.keys_of(spec):
            calls = self._calls[key]
            if not calls:
                raise TapError(
                    f"Module {key[0]!r} (tap {spec!r}) was not called in this forward. Tap a "
                    "module that runs in training, or its parent."
                )
            for call in calls:
                if call.versions != _versions(call.value):
                    raise TapError(
                        f"What {key[0]!r} returned was changed in place after it was read (an "
                        "in-place activation follows). Run `Distiller.setup` once before "
                        "training, which finds such taps and copies them. Where it ran, the change "
                        "happens in training only (an in-place dropout): tap the next module."
                    )
                values.append(call.value)
        return values

    def called(self, spec: str) -> bool:
        """Whether every module of a tap was called."""
        return all(self._calls[key] for key in self._taps.keys_of(spec))

    def tensors(self, spec: str) -> list[Tensor]:
        """Return the tapped tensors, flattened over calls and nesting, after the selection."""
        return Tap.parse(spec).choose(flatten_tensors(self.calls(spec)), spec)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each tapped module was called."""
        return {key: len(calls) for key, calls in self._calls.items()}

    def mutated(self) -> set[tuple[str, str]]:
        """Return the taps whose tensors were changed in place after they were read."""
        return {
            key
            for key, calls in self._calls.items()
            if any(call.versions != _versions(call.value) for call in calls)
        }


def _versions(value: Any) -> list[int]:
    # Inference tensors keep no version counter.
    return [0 if t.is_inference() else t._version for t in flatten_tensors(value)]


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {k: _clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clone(v) for v in value]
    return value


class Taps:
    """Taps on one model.

    Hooks live only inside :meth:`capture`, so a copy of the model (an EMA, a pickled
    checkpoint) carries none of them.

    Args:
        model: Any module.
        specs: Tap strings; see the module's docstring.

    Raises:
        TapError: If a string is malformed or names no module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> taps = Taps(net, ["0", "2@input"])
        >>> with taps.capture() as captured:
        ...     _ = net(torch.ones(4, 2))
        >>> [tuple(t.shape) for t in captured.tensors("2@input")]
        [(4, 3)]
    """

    def __init__(self, model: nn.Module, specs: Iterable[str]) -> None:
        self._model = model
        self._keys_of: dict[str, list[tuple[str, str]]] = {}
        self.copied: set[tuple[str, str]] = set()
        """Taps to copy when read, because something later changes them in place."""
        for spec in specs:
            tap = Tap.parse(spec)
            self._keys_of[spec] = [(name, tap.side) for name in tap.modules(model)]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The (module name, side) pairs read."""
        return list(dict.fromkeys(key for keys in self._keys_of.values() for key in keys))

    def keys_of(self, spec: str) -> list[tuple[str, str]]:
        """The (module name, side) pairs that one tap string stands for."""
        if spec not in self._keys_of:
            raise TapError(f"Tap {spec!r} was not asked for.{did_you_mean(spec, self._keys_of)}")
        return self._keys_of[spec]

    @contextmanager
    def capture(
        self, stop_after: Mapping[tuple[str, str], int] | None = None
    ) -> Iterator[Captured]:
        """Record what the tapped modules return while the block runs.

        Args:
            stop_after: Number of calls of each tap (from :meth:`Captured.counts`) after which
                the rest of the forward is not needed. The block is then left at once, so
                statements after the forward in it may not run. ``None`` never stops.
        """
        captured = Captured(self)
        missing = dict(stop_after or {})

        def record(key: tuple[str, str], value: Any) -> None:
            if key in self.copied:
                value = _clone(value)
            captured._calls[key].append(_Call(value, _versions(value)))
            if stop_after is not None:
                missing[key] = missing.get(key, 0) - 1
                if all(count <= 0 for count in missing.values()):
                    raise _StopForward

        # Looked up anew each time: SyncBN conversion and the like replace modules.
        modules = {key: self._model.get_submodule(key[0]) for key in self.keys}
        for key, module in modules.items():
            if key[1] == "weight":  # there without any forward
                captured._calls[key].append(_Call(module.weight, _versions(module.weight)))
                missing[key] = 0
        called = [key for key in modules if key[1] != "weight"]
        handles = [_register(modules[key], key, record) for key in called]
        try:
            yield captured
        except _StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()


def _register(
    module: nn.Module, key: tuple[str, str], record: Callable[[tuple[str, str], Any], None]
) -> Any:
    if key[1] == "input":

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            record(key, (*args, kwargs))

        return module.register_forward_pre_hook(_untraced(before), with_kwargs=True)

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        record(key, output)

    return module.register_forward_hook(_untraced(after))


def _untraced(hook: Callable[..., None]) -> Any:
    # Each capture has new hooks: traced, a compiled model would be compiled anew at every step.
    return torch.compiler.disable(hook)
