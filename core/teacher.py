"""The frozen-teacher contract, and safe loading of a teacher's weights."""

from __future__ import annotations

import copy
import hashlib
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .errors import CheckpointError, ConfigError, TeacherError
from .folding import LAYERS, find_foldable, fold_batch_norms, is_spoiled
from .taps import Captured, Taps, compiled_call, flatten_tensors, guard_hooks, map_tensors
from .tuning import (
    MEMORY_FORMATS,
    PRECISIONS,
    Setting,
    check_choice,
    fastest,
    pinned,
    settings_for,
)

__all__ = ["FrozenTeacher", "file_sha256", "load_weights", "read_checkpoint", "state_sha256"]

logger = logging.getLogger(__name__)

_BATCHES = "num_batches_tracked"


class FrozenTeacher:
    """A network that is only ever asked.

    Not an ``nn.Module`` on purpose: held as an attribute of a model it appears neither in
    ``parameters()`` nor in ``state_dict()``, DDP buckets or an optimizer, and ``copy.deepcopy``
    (which EMA uses) shares it instead of copying it. Every call runs in eval mode and without
    gradient, whatever was done to the model in between, and gives float32.

    What is run is :attr:`network`. :meth:`prepare` (called by :meth:`.Distiller.setup`) makes it a
    faster copy of :attr:`model`, which itself stays as it was loaded: batch norms folded, weights
    in the precision and memory format that are fastest here, in inference mode.

    Args:
        model: The network. It is put in eval mode and its parameters need no gradient any more.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, of the teacher alone, whatever autocast is
            on around it; ``None`` follows that one. ``"auto"`` measures on a CPU whether bfloat16
            is faster than float32, and takes half precision on a GPU.
        memory_format: ``"contiguous"`` or ``"channels_last"``, of weights and images; ``"auto"``
            measures on a CPU, and takes channels-last on a GPU.
        fold: Fold batch norms into the layers before them.
        compile: Compile the network with ``torch.compile``; a mapping holds its arguments.
        device: Where it runs, if not where its inputs are; outputs come back to those.
        preprocess: Called on the inputs before the teacher sees them (its own normalisation);
            gets and returns ``(args, kwargs)``.
        sha256: Hash of the checkpoint it was loaded from, kept for resume.
        source: Where it came from (config, checkpoint), for messages.

    Raises:
        ConfigError: If ``precision`` or ``memory_format`` is unknown, or ``device`` is none.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
        >>> _ = teacher.model.train()
        >>> out = teacher(torch.ones(1, 2))
        >>> out.requires_grad, teacher.model.training
        (False, False)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str | None = "auto",
        memory_format: str = "auto",
        fold: bool = True,
        compile: bool | Mapping[str, Any] = False,
        device: torch.device | str | None = None,
        preprocess: Callable[[tuple, dict], tuple[tuple, dict]] | None = None,
        sha256: str | None = None,
        source: str = "teacher",
    ) -> None:
        check_choice("precision", precision, [None, "auto", *PRECISIONS])
        check_choice("memory_format", memory_format, ["auto", *MEMORY_FORMATS])
        self.model = model.eval().requires_grad_(False)
        self._network: nn.Module = self.model
        self.precision, self.memory_format = precision, memory_format
        self.fold, self.compile = fold, compile
        self.preprocess = preprocess
        self.sha256 = sha256
        self.source = source
        self.own_device = None if device is None else _checked_device(device)
        self.expected_device: torch.device | None = None
        """Where it will run, known before it does: what is fastest there is chosen."""
        self.adjust: Callable[[nn.Module], object] | None = None
        """Called with each faster copy: what a framework's operators need done to it."""
        self.setting: Setting | None = None
        """How it runs; None before :meth:`prepare`."""
        self.how = "runs as it was given"
        """The same in words, and why."""
        self._folded: list[tuple[str, str]] = []
        self._outermost: list[str] = []
        self._infers = False
        self._made_of: tuple[Any, ...] = ()
        # Listed once: walking through a network takes longer than a small layer.
        self._modules = list(model.modules())
        self._weights = [t for t in (*model.parameters(), *model.buffers()) if not t.is_inference()]
        self._stream: Any = None
        self._copied: set[tuple[str, str]] = set()
        self._keep: set[tuple[str, str]] = set()
        self._watched: set[tuple[tuple[str, ...], bool]] = set()
        self._taps: dict[tuple[str, ...], Taps] = {}

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    @property
    def network(self) -> nn.Module:
        """What is run: the model, or a faster copy of it as it is now."""
        if self._network is not self.model and self._made_of[-1] != self._version():
            assert self.setting is not None
            self._use(self.setting)
            self._compile()
        return self._network

    def _version(self) -> int:
        """Grows when the model's weights are changed in place, as by ``load_state_dict``."""
        return sum(t._version for t in self._weights)

    @property
    def device(self) -> torch.device:
        """Where the teacher's weights are."""
        first = next(self._network.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def runs_as(self) -> dict[str, Any]:
        """How it runs, in plain values: what its outputs depend on beside its weights."""
        precision = self.precision if self.setting is None else self.setting.precision
        return {
            "precision": "surrounding" if self.precision is None else precision,
            "memory_format": (self.setting or Setting()).memory_format,
            "folded": len(self._folded),
            "compiled": bool(self.compile),
        }

    # -- asking --------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the whole teacher and return what it returns."""
        return _as_usual(self._run(self.network, args, kwargs, self._infers), {})

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` (the teacher's network or a method of it) under the contract."""
        return _as_usual(self._run(forward, args, kwargs, self._infers), {})

    def _run(
        self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any], infers: bool
    ) -> Any:
        given = next((t.device for t in flatten_tensors((args, kwargs))), None)
        device = self.own_device or given or self.device
        if device != self.device:
            for network in (self.model, self._network):
                network.to(device)
        if any(module.training for module in self._modules):
            self.model.eval()
        if self._network.training:
            self._network.eval()
        if self.preprocess is not None:
            args, kwargs = self.preprocess(args, kwargs)
        if self.own_device is not None:
            args, kwargs = (_moved(value, device) for value in (args, kwargs))
        if self.setting is not None and self.setting.memory_format == "channels_last":
            args, kwargs = (_channels_last(value) for value in (args, kwargs))
        without = torch.inference_mode if infers else torch.no_grad
        with without(), self._autocast(device):
            return forward(*args, **kwargs)

    def taps(self, specs: Iterable[str]) -> Taps:
        """Taps on what is run, made once for each set of names.

        What is tapped is neither folded nor cast from then on.
        """
        key, network = tuple(specs), self.network
        if key not in self._taps:
            made = Taps(network, key)
            self._keep |= set(made.keys)
            if self.setting is not None and self._is_changed(made.keys):
                self._folded = [p for p in self._folded if not self._is_spoiled(p)]
                self._use(self.setting)
                self._compile()
                made = Taps(self.network, key)
            self._taps[key] = made
            made.copied |= self._copied & set(made.keys)
        return self._taps[key]

    def _is_spoiled(self, pair: tuple[str, str]) -> bool:
        return is_spoiled(self.model, pair, self._keep)

    def _is_changed(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Whether the faster copy has something else where one wants to read."""
        if any(self._is_spoiled(pair) for pair in self._folded):
            return True
        weights = [name for name, side in keys if side == "weight"]
        return any(
            self.network.get_submodule(name).weight is not self.model.get_submodule(name).weight
            for name in weights
        )

    def observe(
        self,
        specs: Iterable[str],
        *args: Any,
        forward: Callable[..., Any] | None = None,
        stop_after: Mapping[tuple[str, str], int] | None = None,
        **kwargs: Any,
    ) -> tuple[Captured, Any]:
        """Run the teacher with taps on.

        Args:
            specs: Tap strings.
            *args: The teacher's inputs.
            forward: What to call instead of the whole network.
            stop_after: Leave early once every tap was read that often.
            **kwargs: The teacher's inputs.

        Returns:
            What the taps saw, and the output (``None`` after an early exit).
        """
        output, key = None, (tuple(specs), stop_after is None)
        with self.taps(key[0]).capture(stop_after) as captured:
            # Weights are there without any forward.
            if stop_after is None or any(side != "weight" for _, side in stop_after):
                infers = self._infers and key in self._watched
                output = self._run(forward or self.network, args, kwargs, infers)
        # In inference mode nobody notes what is changed in place: it is looked for once before.
        if key not in self._watched and not captured.mutated():
            self._watched.add(key)
        given = next((t.device for t in flatten_tensors((args, kwargs))), None)
        done: dict[int, Tensor] = {}
        move = given if self.own_device is not None else None
        return captured.mapped(lambda value: _as_usual(value, done, move)), _as_usual(
            output, done, move
        )

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[None]:
        """Ask, within the block, in a stream of the teacher's own, where the student's device has
        streams.

        So the teacher's kernels fill what the student's leave idle, or run on a device of their own
        meanwhile. Call :meth:`join` before what
        was answered is read.
        """
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self, answer: Any) -> None:
        """Let the current stream wait for what was asked in :meth:`beside`.

        Args:
            answer: The tensors that it will read, nested in any way.
        """
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in flatten_tensors(answer):
            tensor.record_stream(current)

    def _autocast(self, device: torch.device) -> Any:
        if self.precision is None or not torch.amp.autocast_mode.is_autocast_available(device.type):
            return nullcontext()
        precision = self.precision if self.setting is None else self.setting.precision
        if precision in ("fp32", "auto"):
            return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, dtype=PRECISIONS[precision])

    # -- the faster copy -----------------------------------------------------------------------

    def prepare(
        self,
        forward: Callable[[], Callable[..., Any]],
        specs: Iterable[str],
        *args: Any,
        stop_after: Mapping[tuple[str, str], int] | None = None,
        trial: tuple[tuple, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Make :attr:`network` as fast as it gets here, and see that it says the same.

        A copy has its batch norms folded (the outputs must agree to 1e-3 of their largest number)
        and, of the settings that are left open, the fastest one on this example, in noise for
        floats; in half precision it must agree to a tenth, in root mean square, otherwise to a
        hundredth. Whatever fails is left out. One line in the log says what came of it.

        Args:
            forward: Gives what to call, for the :attr:`network` at that time.
            specs: The taps that are read.
            *args: Example inputs.
            stop_after: As in :meth:`observe`.
            trial: Arguments of a batch as large as is worth measuring; the example's by default.
            **kwargs: Example inputs.

        Raises:
            TeacherError: If it fails, or says something else, in the only setting that is left.
        """
        specs = list(specs)
        example = _noise(args), _noise(kwargs)
        trial = (_noise(trial[0]), _noise(trial[1])) if trial is not None else example

        def ask(inputs: tuple[tuple, Mapping[str, Any]] = example) -> list[Tensor]:
            captured, output = self.observe(
                specs, *inputs[0], forward=forward(), stop_after=stop_after, **inputs[1]
            )
            return flatten_tensors([*captured.values(), output])

        for taps in self._taps.values():
            self._copied |= taps.copied
        self._reset()  # another distillation may have prepared it already
        self.setting = Setting()
        plain: list[Tensor] = []
        outermost: list[str] = []

        def look() -> None:
            with _calls_at_the_top(self.network) as called:
                plain.extend(tensor.clone() for tensor in ask())
            outermost.extend(called)

        if self.fold:
            self._folded = find_foldable(self.model, look, self._keep)
        else:
            look()
        self._outermost = outermost
        if not outermost:
            self._reset()
            self.how = "is never run, for nothing but its weights is read"
            return
        device = self.own_device or self.expected_device or self.device
        settings = self._settings(device)
        try:
            self._use(Setting())
        except Exception as error:  # a network that cannot be copied runs as it is
            self.how = f"runs as it was given, for it cannot be copied: {error}"
            logger.info("Teacher %s %s", self.source, self.how)
            self._reset()
            return
        with _calls_at_the_top(self.network) as called:
            folded = ask()
        if not called:
            self.how = (
                "runs as it was given, for what asks it calls the network itself: call "
                "teachers[name].network to have it run faster"
            )
            logger.info("Teacher %s %s", self.source, self.how)
            self._reset()
            return
        if self._folded and not _agree(folded, plain, 1e-3, rms=False):
            self._folded = []
        choice, seconds = self._choose(settings, ask, lambda: ask(trial), plain)
        self._use(choice)
        self._infers = True
        try:
            ask()
        except RuntimeError:  # it keeps something from one call to the next
            self._infers = False
        self._compile()
        self._tell(choice, seconds)

    def adopt(self, runs_as: Mapping[str, Any]) -> None:
        """Run as :attr:`runs_as` of an earlier run says, where that was measured.

        A resumed run so repeats what it would have done, on whichever machine it goes on. What the
        config pins stays.
        """
        if self.setting is None or self.precision is None:
            return
        precision = runs_as.get("precision") if self.precision == "auto" else self.precision
        layout = runs_as.get("memory_format")
        layout = layout if self.memory_format == "auto" else self.memory_format
        wanted = Setting(
            precision if precision in PRECISIONS else self.setting.precision,
            layout if layout in MEMORY_FORMATS else self.setting.memory_format,
        )
        if wanted != self.setting:
            self.how = f"runs in {wanted}, as in the run that is resumed"
            logger.info("Teacher %s %s", self.source, self.how)
            self._use(wanted)
            self._compile()

    def _settings(self, device: torch.device) -> list[Setting]:
        has_maps = any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in self.model.modules())
        forced = pinned()
        if forced is not None and "auto" in (self.precision, self.memory_format):
            free = self.precision == "auto", self.memory_format == "auto" and has_maps
            own = settings_for(self.precision, self.memory_format, device, has_maps)[0]
            return [Setting(*(f if c else o for f, o, c in zip(forced, own, free, strict=True)))]
        return settings_for(self.precision, self.memory_format, device, has_maps)

    def _choose(
        self,
        settings: Sequence[Setting],
        ask: Callable[[], list[Tensor]],
        measured: Callable[[], object],
        plain: list[Tensor],
    ) -> tuple[Setting, dict[Setting, float]]:
        copies, failed = {}, ""
        for setting in settings:
            self._use(setting)
            try:
                failed = "" if setting == Setting() else _disagreement(ask(), plain, setting)
            except (RuntimeError, TypeError) as error:
                failed = f"it fails: {error}"
            if not failed:
                copies[setting] = (self.network, self._taps, self._made_of)
        if not copies:
            raise TeacherError(
                f"Teacher {self.source} cannot run in {settings[0]}: {failed}. Set its precision "
                "and memory_format to 'auto', or to 'fp32' and 'contiguous'."
            )

        def timed(setting: Setting) -> Callable[[], object]:
            def run() -> None:
                self.setting = setting
                self._network, self._taps, self._made_of = copies[setting]
                measured()

            return run

        if len(settings) == 1:
            return settings[0], {}
        choice, seconds = fastest({setting: timed(setting) for setting in copies})
        return _agreed(choice), seconds

    def _use(self, setting: Setting) -> None:
        """Put a copy in place that runs in a setting."""
        read = {self.model.get_submodule(name) for name, side in self._keep if side == "weight"}
        names = {name for name, module in self.model.named_modules() if module in read}
        made_of = (setting, tuple(self._folded), frozenset(names), self._version())
        if self._network is not self.model and self._made_of == made_of:
            return
        # What stays as it is is shared with the model.
        memo: dict[int, Any] = {id(t): t for t in self.model.parameters()}
        memo.update({id(t): t for t in self.model.buffers()})
        network = copy.deepcopy(self.model, memo).eval()
        fold_batch_norms(network, self._folded)
        _cast(network, setting, names)
        if self.adjust is not None:
            self.adjust(network)
        self._network, self.setting, self._taps = network, setting, {}
        self._made_of = made_of

    def _reset(self) -> None:
        self._network, self.setting, self._taps, self._folded = self.model, None, {}, []
        self._infers = False

    def _compile(self) -> None:
        if not self.compile:
            return
        guard_hooks()
        options = dict(self.compile) if isinstance(self.compile, Mapping) else {}
        for name in self._outermost:
            module = self._network.get_submodule(name)
            module._compiled_call_impl = compiled_call(module, f"teacher {name}", options)  # type: ignore

    def _tell(self, choice: Setting, seconds: Mapping[Setting, float]) -> None:
        self.how = f"runs in {choice}, {len(self._folded)} batch norms folded"
        if self.compile:
            self.how += ", compiled"
        if seconds:
            times = "; ".join(f"{s} {1000 * t:.1f} ms" for s, t in seconds.items())
            self.how += (
                f": what is fastest here, of one batch ({times}). To pin it: "
                f"precision={choice.precision!r}, memory_format={choice.memory_format!r}."
            )
        logger.info("Teacher %s %s", self.source, self.how)


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"teacher device {device!r} is no device; expected e.g. 'cuda:1' or 'cpu'."
        ) from error
    count = torch.cuda.device_count()
    if found.type == "cuda" and found.index is None and count:
        found = torch.device("cuda", torch.cuda.current_device())
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(
            f"teacher device {str(found)!r} is not there: this process sees {count} GPUs. Leave "
            "device out to run the teacher where the student is."
        )
    return found


def _agreed(choice: Setting) -> Setting:
    """The choice of the first process: all run their teachers alike."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return choice
    told: list[Any] = [tuple(choice)]
    dist.broadcast_object_list(told, src=0)
    return Setting(*told[0])


def _cast(network: nn.Module, setting: Setting, but: Collection[str]) -> None:
    """Bring weights into the precision and memory format of a setting, in new tensors.

    Convolutions and linear layers only, which autocast computes in half precision anyway and whose
    weights it would convert at every call.
    """
    half = setting.precision != "fp32"
    for module_name, module in network.named_modules():
        if not isinstance(module, LAYERS) or is_parametrized(module) or module_name in but:
            continue
        for name, value in list(module._parameters.items()):
            if value is None:
                continue
            made = value.to(PRECISIONS[setting.precision]) if half else value
            if made.ndim == 4 and setting.memory_format == "channels_last":
                made = made.contiguous(memory_format=torch.channels_last)
            if made is not value:
                module._parameters[name] = nn.Parameter(made, requires_grad=False)


@contextmanager
def _calls_at_the_top(network: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that are called within the block while no other of them is running."""
    found: dict[str, None] = {}
    running: list[str] = []
    handles = []
    for name, module in network.named_modules():

        def before(_module: nn.Module, _args: Any, name: str = name) -> None:
            if not running:
                found[name] = None
            running.append(name)

        def after(_module: nn.Module, _args: Any, _output: Any) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(before))
        # Also of a forward that is left early.
        handles.append(module.register_forward_hook(after, always_call=True))
    names: list[str] = []
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
        names.extend(found)


def _noise(value: Any) -> Any:
    """The same inputs, floats in noise: of a black image much is zero that should be compared."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator)
        return drawn.to(tensor.device, tensor.dtype)

    return map_tensors(value, draw)


def _agree(found: list[Tensor], expected: list[Tensor], tolerance: float, *, rms: bool) -> bool:
    if len(found) != len(expected):
        return False
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return False
        if not theirs.is_floating_point():
            if not torch.equal(ours, theirs):
                return False
            continue
        ours, theirs = ours.double(), theirs.double()
        both = ours - theirs, theirs
        gap, size = (t.square().mean().sqrt() if rms else t.abs().max() for t in both)
        if theirs.numel() and not bool(gap <= tolerance * size):
            return False
    return True


def _disagreement(found: list[Tensor], plain: list[Tensor], setting: Setting) -> str:
    """How answers in a setting differ from the plain ones by more than rounding; or nothing."""
    half = setting.precision != "fp32"
    if _agree(found, plain, 0.1 if half else 1e-2, rms=True):
        return ""
    return "its answers differ from those in float32 by more than a " + (
        "tenth" if half else "hundredth"
    )


def _as_usual(value: Any, done: dict[int, Tensor], device: torch.device | None = None) -> Any:
    """What any loss can take: no inference tensors, no half precision."""

    def usual(tensor: Tensor) -> Tensor:
        key = id(tensor)
        if key not in done:
            made = tensor
            if tensor.dtype in (torch.float16, torch.bfloat16):
                made = tensor.float()
            if device is not None:
                made = made.to(device, non_blocking=True)
            if made.is_inference():  # such may not be kept for a backward pass
                made = made.clone()
            done[key] = made
        return done[key]

    return map_tensors(value, usual)


def _moved(value: Any, device: torch.device) -> Any:
    return map_tensors(value, lambda t: t.to(device, non_blocking=True))


def _channels_last(value: Any) -> Any:
    def laid_out(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or not tensor.is_floating_point():
            return tensor
        return tensor.contiguous(memory_format=torch.channels_last)

    return map_tensors(value, laid_out)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as a hex string."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and buffers, for one that comes from no file.

    Example:
        >>> state_sha256(nn.Identity())[:8]
        'e3b0c442'
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> state_sha256(a) == state_sha256(a), state_sha256(a) == state_sha256(b)
        (True, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: str | Path, safe_globals: Sequence[Any] = ()) -> Any:
    """Read a checkpoint without letting it run code (``weights_only=True``).

    Args:
        path: A local file.
        safe_globals: Further classes that may be rebuilt from it; see
            ``torch.serialization.safe_globals``.

    Raises:
        CheckpointError: If the file is missing, truncated, no checkpoint, or needs code to load.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"Checkpoint {str(path)!r} is a folder; give the file in it.")
    if not path.is_file():
        where = "the folder exists" if path.parent.is_dir() else "nor does its folder"
        raise CheckpointError(
            f"Checkpoint {str(path)!r} does not exist ({where}). Give the path of a file that "
            "training wrote, or train that model first."
        )
    try:
        with torch.serialization.safe_globals(list(safe_globals)), warnings.catch_warnings():
            # Of a damaged file torch also says that its pickle protocol is an odd one.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := _refused_global(str(error)):
            raise CheckpointError(
                f"Checkpoint {str(path)!r} holds more than tensors and plain data: {wanted}. "
                "Loading that would run code, which is refused. Save its state_dict alone. If it "
                "should hold nothing else, the file is damaged."
            ) from error
        raise _damaged(path) from error
    except PermissionError as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} may not be read by this user. Change its permissions."
        ) from error
    except Exception as error:  # damaged bytes make the unpickler fail in any way there is
        raise _damaged(path) from error


def _refused_global(reason: str) -> str | None:
    """The class or function that an unpickler refused, or None where it failed otherwise."""
    match = re.search(r"GLOBAL (\S+)|global (.+) is refused", reason)
    if match is None or match[2]:
        return match and match[2]
    # Of a file that ends within a name, the rest of it is no name.
    return match[1] if all(part.isidentifier() for part in match[1].split(".")) else None


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"Checkpoint {str(path)!r} ({path.stat().st_size} bytes) is truncated or no checkpoint at "
        "all. Copy or download it again, or take an earlier one."
    )


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    safe_globals: Sequence[Any] = (),
    names: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> str:
    """Load a checkpoint's weights into a model, strictly unless told otherwise.

    Accepts a bare state dict or one under ``state_dict`` or ``model``; a ``module.`` prefix that
    data-parallel training left on every name is removed. A file of a torch that did not count the
    batches of batch norms yet may leave those counts out.

    Args:
        model: The network to fill.
        path: A local file.
        strict: Whether a missing, unexpected or misshapen entry is an error.
        safe_globals: See :func:`read_checkpoint`.
        names: Maps the file's state dict to the model's own names, for files of other releases of
            the same architecture.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: If the file cannot be read, or (when strict) belongs to another
            architecture; lists the names that are missing, unexpected or of another shape.
    """
    checkpoint = read_checkpoint(path, safe_globals)
    state = checkpoint
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if (
        not isinstance(state, Mapping)
        or not any(isinstance(value, Tensor) for value in state.values())
        or not all(isinstance(name, str) for name in state)
    ):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} holds no state dict (neither at its top nor under "
            "'state_dict' or 'model')."
        )
    own = model.state_dict()
    if _parallel(state) and not _parallel(own):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if names is not None:
        state = names(state)

    # Files from before torch 0.4.1 count no batches, and torch itself does not ask for it.
    counts = any(name.endswith(_BATCHES) for name in state)
    missing = [n for n in own if n not in state and (counts or not n.endswith(_BATCHES))]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} (model {_shape(own[name])}, file {_shape(state[name])})"
        for name in own
        if name in state and _shape(own[name]) != _shape(state[name])
    ]
    if strict and (missing or unexpected or misshapen):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} does not fit {type(model).__name__}: it belongs to another "
            "architecture or number of classes, or the config is not the one it was trained with."
            f"{_listing('missing', missing)}{_listing('unexpected', unexpected)}"
            f"{_listing('other shape', misshapen)}\nTo load what fits on purpose, set strict=False."
        )
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and _shape(own[name]) == _shape(value)
    }
    if not fitting:
        raise TeacherError(f"Nothing in checkpoint {str(path)!r} fits {type(model).__name__}.")
    model.load_state_dict(fitting, strict=False)
    return file_sha256(Path(path).expanduser())


def _parallel(names: Iterable[str]) -> bool:
    return all(name.startswith("module.") for name in names)


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _listing(what: str, names: Sequence[str], limit: int = 8) -> str:
    if not names:
        return ""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f"\n  {what} ({len(names)}): {', '.join(names[:limit])}{more}"
