"""The frozen-teacher contract, and safe loading of a teacher's weights."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError, ConfigError, TeacherError
from .taps import Captured, Taps, flatten_tensors

__all__ = ["FrozenTeacher", "file_sha256", "load_weights", "read_checkpoint", "state_sha256"]

_BATCHES = "num_batches_tracked"
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher:
    """A network that is only ever asked.

    Not an ``nn.Module`` on purpose: held as an attribute of a model it appears neither in
    ``parameters()`` nor in ``state_dict()``, DDP buckets or an optimizer, and ``copy.deepcopy``
    (which EMA uses) shares it instead of copying it. Every call runs in eval mode and without
    gradient, whatever was done to the model in between.

    Args:
        model: The network. It is put in eval mode and its parameters need no gradient any more.
        precision: ``None`` follows the surrounding autocast; ``"fp32"`` switches autocast off
            for the teacher, ``"bf16"`` and ``"fp16"`` run the teacher alone in autocast.
        compile: Compile the model with ``torch.compile``.
        preprocess: Called on the inputs before the teacher sees them (its own normalisation);
            gets and returns ``(args, kwargs)``.
        sha256: Hash of the checkpoint it was loaded from, kept for resume.
        source: Where it came from (config, checkpoint), for messages.

    Raises:
        ConfigError: If ``precision`` is unknown.

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
        precision: str | None = None,
        compile: bool = False,
        preprocess: Callable[[tuple, dict], tuple[tuple, dict]] | None = None,
        sha256: str | None = None,
        source: str = "teacher",
    ) -> None:
        if precision is not None and precision not in _PRECISIONS:
            raise ConfigError(
                f"teacher precision {precision!r} is not one of {[None, *_PRECISIONS]}."
            )
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.preprocess = preprocess
        self.sha256 = sha256
        self.source = source
        self._call: Callable[..., Any] = torch.compile(model) if compile else model
        self._taps: dict[tuple[str, ...], Taps] = {}

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    @property
    def device(self) -> torch.device:
        """Where the teacher's weights are."""
        first = next(self.model.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the whole teacher and return what it returns."""
        return self.run(self._call, *args, **kwargs)

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` (the teacher or a method of it) under the contract."""
        device = next((t.device for t in flatten_tensors((args, kwargs))), None)
        if device is not None and device != self.device:
            self.model.to(device)
        self.model.eval()
        if self.preprocess is not None:
            args, kwargs = self.preprocess(args, kwargs)
        with torch.no_grad(), self._autocast(device or self.device):
            return forward(*args, **kwargs)

    def taps(self, specs: Iterable[str]) -> Taps:
        """Taps on this teacher, made once for each set of names."""
        key = tuple(specs)
        if key not in self._taps:
            self._taps[key] = Taps(self.model, key)
        return self._taps[key]

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
            forward: What to call instead of the whole teacher.
            stop_after: Leave early once every tap was read that often.
            **kwargs: The teacher's inputs.

        Returns:
            What the taps saw, and the output (``None`` after an early exit).
        """
        output = None
        with self.taps(specs).capture(stop_after) as captured:
            output = self.run(forward or self._call, *args, **kwargs)
        return captured, output

    def _autocast(self, device: torch.device) -> Any:
        if self.precision is None:
            return nullcontext()
        if self.precision == "fp32":
            return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, dtype=_PRECISIONS[self.precision])


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
