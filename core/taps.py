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

import copy
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TapError, did_you_mean

__all__ = [
    "Captured",
    "Tap",
    "Taps",
    "compiled_call",
    "flatten_tensors",
    "guard_hooks",
    "map_tensors",
    "own_code",
    "take_in",
    "tried",
]

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


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Exchange the tensors that :func:`flatten_tensors` lists; all else stays.

    Example:
        >>> import torch
        >>> map_tensors({"a": (torch.ones(1), "b")}, lambda t: t + 1)
        {'a': (tensor([2.]), 'b')}
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)  # of its own class: a model output has its entries by name
        for key, entry in value.items():
            made[key] = map_tensors(entry, change)
        return made
    if isinstance(value, (list, tuple)):
        entries = [map_tensors(entry, change) for entry in value]
        if isinstance(value, list):
            return entries
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


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
        self._seen: dict[tuple[str, str], list[_Call]] = {key: [] for key in taps.keys}

    @property
    def _calls(self) -> dict[tuple[str, str], list[_Call]]:
        self._taps._recorder.take_in()
        return self._seen

    @classmethod
    def of(cls, taps: Taps, calls: Mapping[tuple[str, str], Sequence[Any]]) -> Captured:
        """Make what taps would have seen, of values that come from elsewhere (a cache).

        Weights need not be given: they are read from the taps' model, as it is now.

        Args:
            taps: The taps.
            calls: By (module name, side), what each call returned (or got).

        Raises:
            TapError: If a value is of a module that the taps do not read.
        """
        captured = cls(taps)
        for key, values in {**taps.weights(), **calls}.items():
            if key not in captured._seen:
                known = ", ".join(f"{name}@{side}" for name, side in captured._seen) or "nothing"
                raise TapError(f"'{key[0]}@{key[1]}' is not tapped; tapped is {known}.")
            captured._seen[key] = [_Call(value, _versions(value)) for value in values]
        return captured

    def add(self, key: tuple[str, str], value: Any) -> None:
        """Note one call of a tapped module."""
        self._seen[key].append(_Call(value, _versions(value)))

    @property
    def taps(self) -> Taps:
        """The taps that it was read with."""
        return self._taps

    def calls(self, spec: str) -> list[Any]:
        """Return what the tapped modules returned (or got), one entry a call, as it was.

        Raises:
            TapError: If a module was never called, or a tensor was changed in place afterwards.
        """
        keys = self._taps.keys_of(spec)
        return [value for key in keys for value in self._checked(key, f" (tap {spec!r})")]

    def by_module(self) -> dict[tuple[str, str], list[Any]]:
        """Return what each tapped module returned (or got), one entry a call, without weights.

        Raises:
            TapError: As :meth:`calls`.
        """
        return {key: self._checked(key, "") for key in self._taps.keys if key[1] != "weight"}

    def _checked(self, key: tuple[str, str], tap: str) -> list[Any]:
        calls = self._calls[key]
        if not calls:
            raise TapError(
                f"Module {key[0]!r}{tap} was not called in this forward. Tap a module that runs in "
                "training, or its parent."
            )
        for call in calls:
            if call.versions != _versions(call.value):
                raise TapError(
                    f"What {key[0]!r} returned was changed in place after it was read (an in-place "
                    "activation follows). Run `Distiller.setup` once before training, which finds "
                    "such taps and copies them. Where it ran, the change happens in training only "
                    "(an in-place dropout): tap the next module."
                )
        return [call.value for call in calls]

    def called(self, spec: str) -> bool:
        """Whether every module of a tap was called."""
        return all(self._calls[key] for key in self._taps.keys_of(spec))

    def tensors(self, spec: str) -> list[Tensor]:
        """Return the tapped tensors, flattened over calls and nesting, after the selection."""
        return Tap.parse(spec).choose(flatten_tensors(self.calls(spec)), spec)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each tapped module was called."""
        return {key: len(calls) for key, calls in self._calls.items()}

    def values(self) -> list[Any]:
        """Return what every tapped module returned (or got), tap by tap and call by call."""
        return [call.value for calls in self._calls.values() for call in calls]

    def mapped(self, change: Callable[[Any], Any]) -> Captured:
        """Return the same with other values, in which nothing is changed in place any more."""
        made = Captured(self._taps)
        for key, calls in self._calls.items():
            for call in calls:
                if call.versions != _versions(call.value):
                    return self  # to be told when it is read
                value = change(call.value)
                made._seen[key].append(_Call(value, _versions(value)))
        return made

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
        self._recorder = _Recorder()
        for spec in specs:
            tap = Tap.parse(spec)
            self._keys_of[spec] = [(name, tap.side) for name in tap.modules(model)]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The (module name, side) pairs read."""
        return list(dict.fromkeys(key for keys in self._keys_of.values() for key in keys))

    @property
    def specs(self) -> list[str]:
        """The tap strings asked for."""
        return list(self._keys_of)

    def weights(self) -> dict[tuple[str, str], list[Tensor]]:
        """The tapped weights, which are there without any forward."""
        keys = [key for key in self.keys if key[1] == "weight"]
        return {key: [self._model.get_submodule(key[0]).weight] for key in keys}  # type: ignore

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
        recorder = self._recorder
        missing = dict(stop_after or {})

        def count(key: tuple[str, str], value: Any) -> None:
            captured.add(key, value)
            missing[key] = missing.get(key, 0) - 1
            if all(count <= 0 for count in missing.values()):
                raise _StopForward

        # Looked up anew each time: SyncBN conversion and the like replace modules.
        modules = {key: self._model.get_submodule(key[0]) for key in self.keys}
        for key, module in modules.items():
            if key[1] == "weight":  # there without any forward
                captured._seen[key].append(_Call(module.weight, _versions(module.weight)))
                missing[key] = 0
        called = [key for key in modules if key[1] != "weight"]
        if stop_after is not None:
            told, hook = recorder.counting, recorder.counting_hook
            listener: Any = count
        else:
            told, hook, listener = recorder.telling, recorder.hook, captured
        # The hooks of a capture around this one tell both.
        new = [] if told else called
        hooks = {key: hook(key, key in self.copied) for key in new}
        handles = [_register(modules[key], key, hook) for key, hook in hooks.items()]
        recorder.take_in()
        told.append(listener)
        _RECORDING.append(recorder)
        try:
            yield captured
        except _StopForward:
            pass
        finally:
            recorder.take_in()
            told.remove(listener)
            _RECORDING.remove(recorder)
            for handle in handles:
                handle.remove()


class _Recorder:
    """What the hooks of one :class:`Taps` write to.

    A hook that is traced by ``torch.compile`` leaves what it saw in :attr:`inbox`, a list that
    compiled code can append to; there are no graph breaks, and what was read is an output of the
    compiled graph. So that nothing is compiled anew, each capture registers the same hooks, and
    compiled code finds the inbox empty (:func:`take_in`).
    """

    def __init__(self) -> None:
        self.inbox: list[tuple[tuple[str, str], Any]] = []
        self.telling: list[Captured] = []
        """Captures that run to the end."""
        self.counting: list[Callable[[tuple[str, str], Any], None]] = []
        """What those that end early are told by."""
        self._hooks: dict[tuple[tuple[str, str], bool, bool], Callable[..., None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recorder:
        return _Recorder()  # of another model's taps

    def __reduce__(self) -> Any:
        return _Recorder, ()

    def hook(self, key: tuple[str, str], copies: bool) -> Callable[..., None]:
        """The hook of a tap: one for good."""
        if (key, copies, False) not in self._hooks:
            inbox, note = self.inbox, self.note

            def record(key: tuple[str, str], value: Any) -> None:
                if copies:
                    value = _clone(value)
                if torch.compiler.is_compiling():
                    inbox.append((key, value))
                else:
                    note(key, value)

            self._hooks[key, copies, False] = _hook(key, own_code(record, "record"))
        return self._hooks[key, copies, False]

    def counting_hook(self, key: tuple[str, str], copies: bool) -> Callable[..., None]:
        """The same of a capture that ends early, by raising: that is not for a compiler."""
        if (key, copies, True) not in self._hooks:

            def record(key: tuple[str, str], value: Any) -> None:
                value = _clone(value) if copies else value
                for count in self.counting:
                    count(key, value)

            untraced: Any = torch.compiler.disable(_hook(key, record))
            self._hooks[key, copies, True] = untraced
        return self._hooks[key, copies, True]

    def note(self, key: tuple[str, str], value: Any) -> None:
        """Tell the open captures of a call."""
        self.take_in()
        for captured in self.telling:
            captured.add(key, value)

    def take_in(self) -> None:
        """Tell them of the calls in compiled code."""
        if self.inbox:
            arrived = self.inbox[:]
            self.inbox.clear()
            for key, value in arrived:
                for captured in self.telling:
                    captured.add(key, value)


_RECORDING: list[_Recorder] = []


def take_in() -> None:
    """Let open captures take in what compiled code has just left for them.

    Called after a compiled module that may run several times in one capture: its code is made for
    captures that have taken in all so far, and is compiled anew where they have not.
    """
    for recorder in _RECORDING:
        recorder.take_in()


@contextmanager
def tried() -> Iterator[Callable[[], None]]:
    """Give a function that makes open captures forget what they were told in the block.

    For a forward that may fail half way and be done again in another form.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3))
        >>> with Taps(net, ["0"]).capture() as captured, tried() as forget:
        ...     _ = net(torch.ones(4, 2))
        ...     forget()
        >>> captured.counts()
        {('0', 'output'): 0}
    """
    take_in()
    captures = [captured for recorder in _RECORDING for captured in recorder.telling]
    lengths = [{key: len(calls) for key, calls in each._seen.items()} for each in captures]

    def forget() -> None:
        take_in()
        for captured, before in zip(captures, lengths, strict=True):
            for key, length in before.items():
                del captured._seen[key][length:]

    yield forget


def guard_hooks() -> None:
    """Let what ``torch.compile`` makes from now on look whether modules have hooks.

    By default compiled code takes it that a module without hooks will never have any, and taps on
    it then see nothing where its code was compiled outside of a capture. A setting of the whole
    process, which costs a compiled network some microseconds a call.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False


def _hook(key: tuple[str, str], record: Callable[[tuple[str, str], Any], None]) -> Any:
    if key[1] == "input":

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            record(key, (*args, kwargs))

        return own_code(before, f"before {key[0]}")

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        record(key, output)

    return own_code(after, f"after {key[0]}")


def own_code(function: types.FunctionType | Callable[..., Any], name: str) -> Any:
    """Return a function that does the same, whose code is of no other function.

    What ``torch.compile`` makes is kept by code, and of one code it keeps few; the functions that
    one ``def`` makes have it in common.

    Args:
        function: A plain function, closures included.
        name: What traces and messages of the compiler call it.

    Example:
        >>> own_code(lambda x: x + 1, "next")(2)
        3
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )


def compiled_call(module: nn.Module, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what calls a module compiled, hooks and all, of any class.

    Not ``nn.Module.compile``, which does nothing for a container: the compiler passes frames of
    torch's own by.

    Args:
        module: The module, which stays as it is.
        name: For traces and messages of the compiler.
        options: For ``torch.compile``.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return torch.compile(own_code(forward, f"forward of {name}"), **options)


def _register(module: nn.Module, key: tuple[str, str], hook: Any) -> Any:
    if key[1] == "input":
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    return module.register_forward_hook(hook)
