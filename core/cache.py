"""What a teacher said, on disk: one record a sample, in shards that are whole or not there.

The folder holds ``index.json``, which says what the cache is of, and the shards::

    index.json        the fields of a record, how many there are, whose they are
    shard-00000.bin   64 bytes of header (with a checksum), then the records, one after another

Records of a fixed size are found by arithmetic; where samples have lengths of their own (texts),
each shard begins with the lengths of its samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from .errors import CacheError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "CacheSpec", "Field", "TeacherCache", "stored_identity"]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""What a field may be stored as."""
_FORMAT = "taskdistill teacher cache"
_VERSION = 1
_INDEX = "index.json"
_PART = ".part"
_MAGIC = b"TDCACHE\n"
# Magic, version, shard, records, bytes after the header, digest of the index; the checksum is of
# these, zeros up to its own place, and everything after the header.
_HEAD = struct.Struct("<8sIIQQ16s12x")
_CRC = struct.Struct("<I")
_HEADER = _HEAD.size + _CRC.size
# From here on a field is gathered by itself, so that large records are copied once and not twice.
_LARGE = 1 << 14


@dataclass(frozen=True)
class Field:
    """One tensor of a record.

    Args:
        name: Unique in a record, e.g. ``"tap neck@output 0"`` or ``"answer logits"``.
        shape: Of one sample; an axis of -1 is as long as the sample (its number of tokens).
        dtype: As stored: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int64"``, ``"int32"``,
            ``"int16"``, ``"uint8"`` or ``"bool"``.

    Raises:
        CacheError: If the dtype is unknown, or an axis is neither -1 nor at least 1.

    Example:
        >>> Field("answer logits", (10,), "float16").bytes_of(0)
        20
        >>> Field("answer hidden", (-1, 8), "float32").bytes_of(3)
        96
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(axis) for axis in self.shape))
        if self.dtype not in DTYPES:
            raise CacheError(
                f"Field {self.name!r} has dtype {self.dtype!r}, expected one of "
                f"{', '.join(DTYPES)}.{did_you_mean(str(self.dtype), DTYPES)}"
            )
        if any(axis < 1 and axis != -1 for axis in self.shape):
            raise CacheError(
                f"Field {self.name!r} has shape {self.shape}, expected axes of at least 1, or -1 "
                "for one that is as long as the sample."
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return DTYPES[self.dtype]

    @property
    def ragged(self) -> int:
        """How many axes are as long as the sample."""
        return self.shape.count(-1)

    def shape_of(self, length: int) -> tuple[int, ...]:
        """The shape of a sample of that length."""
        return tuple(length if axis == -1 else axis for axis in self.shape)

    def bytes_of(self, length: int) -> int:
        """Bytes of a sample of that length."""
        return math.prod(self.shape_of(length)) * self.torch_dtype.itemsize


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds, and of what.

    Args:
        fields: The tensors of a record.
        samples: How many records: positions 0 to ``samples - 1``.
        identity: JSON values that say whose answers these are: the teacher's SHA-256, its
            precision, the seed of the augmentation, the length of the data set, ... A cache with
            another identity is refused.
        shard_samples: Records a shard; the last may have fewer.

    Raises:
        CacheError: If there is nothing to store, a name comes twice, or the identity is not JSON.

    Example:
        >>> spec = CacheSpec((Field("answer logits", (10,), "float16"),), 5, {"seed": 0}, 2)
        >>> spec.shards, spec.ragged
        (3, False)
    """

    fields: tuple[Field, ...]
    samples: int
    identity: Mapping[str, Any]
    shard_samples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        if not self.fields:
            raise CacheError("The cache has no fields: no answer of a teacher would be stored.")
        for key in ("samples", "shard_samples"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CacheError(
                    f"{key} of a cache must be a whole number >= 1, got {value!r}."
                    + (" Is the data set empty?" if value == 0 else "")
                )
        names = [field.name for field in self.fields]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CacheError(f"Fields of a cache must differ in name; these come twice: {twice}.")
        try:
            plain = json.loads(json.dumps(self.identity, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CacheError(
                f"The identity of a cache must be made of JSON values: {error}. Got "
                f"{self.identity!r}."
            ) from error
        if not isinstance(plain, dict):
            raise CacheError(f"The identity of a cache must be a mapping, got {self.identity!r}.")
        object.__setattr__(self, "identity", plain)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.samples // self.shard_samples)

    def positions(self, shard: int) -> range:
        """The positions whose records a shard holds."""
        start = shard * self.shard_samples
        return range(start, min(start + self.shard_samples, self.samples))

    @property
    def ragged(self) -> bool:
        """Whether records are as long as their samples."""
        return any(field.ragged for field in self.fields)

    def to_json(self) -> dict[str, Any]:
        """What ``index.json`` holds."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "samples": self.samples,
            "shard_samples": self.shard_samples,
            "identity": dict(self.identity),
            "fields": [
                {"name": field.name, "shape": list(field.shape), "dtype": field.dtype}
                for field in self.fields
            ],
        }


def stored_identity(folder: Path) -> dict[str, Any]:
    """What the cache in a folder says it is of; empty where there is none that can be read.

    A cache that is of something else is refused when it is opened: this is for what goes before.
    """
    try:
        held = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    identity = held.get("identity") if isinstance(held, dict) else None
    return identity if isinstance(identity, dict) else {}


class TeacherCache:
    """A folder of a teacher's answers, written shard by shard and read in any order.

    Several processes may write different shards at the same time, and many may read. A shard
    appears under its name when it is complete, so that writing can be broken off at any moment and
    goes on with :meth:`missing`. Shards are memory-mapped when they are first read, in each process
    by itself; copies in a data loader's workers open them anew.

    Args:
        folder: Where it is; made where it is not there.
        spec: What is to be in it.

    Raises:
        CacheError: If the folder holds a cache of something else (each difference is listed) or
            files that are no cache, or cannot be used.

    Example:
        >>> import tempfile
        >>> spec = CacheSpec((Field("answer logits", (3,), "float16"),), 5, {"seed": 0}, 2)
        >>> cache = TeacherCache(tempfile.mkdtemp(), spec)
        >>> for shard in cache.missing():
        ...     n = len(cache.positions(shard))
        ...     cache.write(shard, {"answer logits": torch.full((n, 3), shard).half()})
        >>> cache.missing(), cache.read([4, 0, 2])["answer logits"][:, 0].tolist()
        ([], [2.0, 0.0, 1.0])
    """

    def __init__(self, folder: str | Path, spec: CacheSpec) -> None:
        self.folder = Path(folder).expanduser()
        self.spec = spec
        # The core is imported with torch alone; only here numpy has to be there.
        if importlib.util.find_spec("numpy") is None:
            raise CacheError("A cache needs numpy: pip install numpy.")
        self._open()
        self._digest = _digest(spec)
        self._record = sum(field.bytes_of(0) for field in spec.fields)
        self._maps: dict[int, _Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return self.spec.shards

    @property
    def record_bytes(self) -> int | None:
        """Bytes a record; ``None`` where they are as long as their samples."""
        return None if self.spec.ragged else self._record

    @property
    def bytes_total(self) -> int | None:
        """Bytes of all shards once they are written; ``None`` where records are ragged."""
        if self.spec.ragged:
            return None
        return self.spec.samples * self._record + self.shards * _HEADER

    def positions(self, shard: int) -> range:
        """The positions whose records a shard holds."""
        if not 0 <= shard < self.shards:
            raise CacheError(
                f"Cache {str(self.folder)!r} has shards 0 to {self.shards - 1}; there is no "
                f"{shard}."
            )
        return self.spec.positions(shard)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.bin"

    # -- what is there -------------------------------------------------------------------------

    def missing(self, shards: Iterable[int] | None = None, *, verify: bool = True) -> list[int]:
        """The shards that have to be written: absent, damaged, or of another cache.

        Args:
            shards: Which to look at; all by default.
            verify: Whether to read them whole and compare their checksums. Otherwise only their
                sizes and headers are looked at.
        """
        wanted = range(self.shards) if shards is None else shards
        return [shard for shard in wanted if self._damage(shard, verify=verify)]

    def _damage(self, shard: int, *, verify: bool) -> str | None:
        """What keeps a shard from being read."""
        records = len(self.positions(shard))
        try:
            with open(self.path(shard), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = file.read(_HEADER)
                if len(header) < _HEADER:
                    return f"is cut off after {size} bytes"
                magic, version, number, held, payload, digest = _HEAD.unpack_from(header)
                if (magic, version) != (_MAGIC, _VERSION):
                    return "is no shard of a cache of this version"
                if (digest, number, held) != (self._digest, shard, records):
                    return "belongs to another cache or place, or its header is damaged"
                expected = _HEADER + payload
                if not self.spec.ragged:
                    expected = _HEADER + records * self._record
                if size != expected:
                    return f"has {size} bytes, expected {expected}"
                if verify and _crc_of(file, header) != _CRC.unpack_from(header, _HEAD.size)[0]:
                    return "does not have the checksum it was written with"
        except FileNotFoundError:
            return "is not there yet"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return None

    # -- writing -------------------------------------------------------------------------------

    def write(
        self, shard: int, rows: Mapping[str, Tensor], lengths: Tensor | Sequence[int] | None = None
    ) -> None:
        """Write one shard, or leave everything as it was.

        Args:
            shard: Which.
            rows: Of each field ``(n, *shape)`` in the field's dtype, on any device; an axis of -1
                padded to any common length.
            lengths: How much of that counts, ``(n,)``; only where records are ragged.

        Raises:
            CacheError: If fields are missing or too many, a tensor has another shape or dtype, or
                the file cannot be written.
        """
        records = len(self.positions(shard))
        own = self._checked_lengths(lengths, records)
        columns = [self._checked(field, rows, records, own) for field in self._fields(rows)]
        if own is None:
            blocks = [torch.cat([torch.from_numpy(column) for column in columns], 1).numpy()]
        else:
            blocks = [own.to(torch.int32).numpy(), _packed(self.spec.fields, columns, own.tolist())]
        size = sum(block.nbytes for block in blocks)
        head = _HEAD.pack(_MAGIC, _VERSION, shard, records, size, self._digest)
        crc = zlib.crc32(head)
        for block in blocks:
            crc = zlib.crc32(block.data if block.size else b"", crc)
        try:
            with _complete(self.path(shard)) as file:
                file.write(head + _CRC.pack(crc))
                for block in blocks:
                    file.write(block.data if block.size else b"")
        except OSError as error:
            raise CacheError(
                f"Shard {shard} of cache {str(self.folder)!r} ({size} bytes) cannot be written: "
                f"{error.strerror or error}. What was written before it is kept: make room or "
                "change the permissions, and run it again."
            ) from error
        self._maps.pop(shard, None)

    def join(
        self, parts: Sequence[Mapping[str, Tensor]], lengths: Sequence[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Put the rows of several batches after one another, as :meth:`write` takes them.

        Args:
            parts: The rows of each batch; ragged axes padded to the batch's own length.
            lengths: The lengths of each batch's samples.
        """
        joined = {}
        for field in self.spec.fields:
            tensors = [part[field.name] for part in parts]
            joined[field.name] = _concatenated(field, tensors)
        return joined, None if lengths is None else torch.cat([*lengths])

    def _fields(self, rows: Mapping[str, Tensor]) -> tuple[Field, ...]:
        expected = {field.name for field in self.spec.fields}
        if expected != set(rows):
            raise CacheError(
                f"A record of cache {str(self.folder)!r} has the fields {sorted(expected)}, got "
                f"{sorted(rows)}."
            )
        return self.spec.fields

    def _checked_lengths(
        self, lengths: Tensor | Sequence[int] | None, records: int
    ) -> Tensor | None:
        if (lengths is not None) != self.spec.ragged:
            raise CacheError(
                "The records are as long as their samples: give their lengths."
                if self.spec.ragged
                else "All records have one size: there are no lengths to give."
            )
        if lengths is None:
            return None
        own = torch.as_tensor(lengths).cpu()
        if own.shape != (records,) or own.is_floating_point() or own.dtype == torch.bool:
            raise CacheError(
                f"lengths must be {records} whole numbers, got {own.dtype} of shape "
                f"{tuple(own.shape)}."
            )
        own = own.long()
        if int(own.min()) < 0 or int(own.max()) > torch.iinfo(torch.int32).max:
            raise CacheError(
                f"lengths must be at least 0 and below 2^31, got {int(own.min())} to "
                f"{int(own.max())}."
            )
        return own

    def _checked(
        self, field: Field, rows: Mapping[str, Tensor], records: int, lengths: Tensor | None
    ) -> np.ndarray:
        """A field's bytes: (n, bytes) of fixed records, the padded tensor's of ragged ones."""
        tensor = rows[field.name].detach()
        if tensor.dtype != field.torch_dtype:
            raise CacheError(
                f"Field {field.name!r} is stored as {field.dtype}, got {tensor.dtype}."
            )
        longest = 0 if lengths is None else int(lengths.max())
        padded = {
            size
            for size, axis in zip(tensor.shape[1:], field.shape, strict=False)
            if axis == -1 and size >= longest
        }
        expected = (records, *field.shape_of(padded.pop() if padded else longest))
        if tuple(tensor.shape) != expected:
            shape = ", ".join(map(str, (records, *field.shape))).replace("-1", f">={longest}")
            raise CacheError(f"Field {field.name!r} must be ({shape}), got {tuple(tensor.shape)}.")
        tensor = tensor.cpu().contiguous()
        if lengths is None:
            return _bytes(tensor.reshape(records, -1))
        return _bytes(tensor)

    # -- reading -------------------------------------------------------------------------------

    def read(
        self, positions: Tensor | Sequence[int], length: int | None = None
    ) -> dict[str, Tensor]:
        """The records of some positions, as stored.

        Args:
            positions: ``(n,)``, in any order, of any shards; repeats are allowed.
            length: What ragged axes are padded to, with zeros; the longest asked for by default.

        Returns:
            Of each field ``(n, *shape)``, on the CPU; memory of its own.

        Raises:
            CacheError: If a position is none of the cache, a shard is absent or damaged, or a
                sample is longer than `length`.
        """
        wanted = self._wanted(positions)
        if self.spec.ragged or self._record >= _LARGE:
            return self._read_singly(wanted, length)
        rows = torch.from_numpy(self._gathered(wanted))
        found, start = {}, 0
        for field in self.spec.fields:
            end = start + field.bytes_of(0)
            # A copy: a view of a single row would begin at any byte.
            column = rows[:, start:end].clone(memory_format=torch.contiguous_format)
            found[field.name] = column.view(field.torch_dtype).view(len(wanted), *field.shape)
            start = end
        return found

    def _gathered(self, wanted: Tensor) -> np.ndarray:
        """Whole records of a fixed size, (n, bytes), without a step a sample."""
        import numpy as np

        # As one element a record, which numpy copies at once.
        element = np.dtype((np.void, self._record))
        rows = np.empty(len(wanted), element)
        shards, inside = np.divmod(wanted.numpy(), self.spec.shard_samples)
        order = shards.argsort()
        inside, shards = inside[order], shards[order]
        bounds = [*np.flatnonzero(np.diff(shards, prepend=-1)).tolist(), len(rows)]
        for start, end in itertools.pairwise(bounds):
            records = self._map(int(shards[start])).records
            records.take(inside[start:end], out=rows[start:end], mode="clip")
        found = np.empty_like(rows)
        found[order] = rows
        return found.view(np.uint8).reshape(-1, self._record)

    def lengths(self, positions: Tensor | Sequence[int]) -> Tensor:
        """How long each sample is, ``(n,)``; of ragged caches.

        Raises:
            CacheError: As :meth:`read`, and if all records have one size.
        """
        if not self.spec.ragged:
            raise CacheError(f"Cache {str(self.folder)!r} has records of one size: no lengths.")
        size = self.spec.shard_samples
        wanted = self._wanted(positions).tolist()
        found = [int(self._map(p // size).lengths[p % size]) for p in wanted]
        return torch.tensor(found, dtype=torch.long)

    def _read_singly(self, wanted: Tensor, length: int | None) -> dict[str, Tensor]:
        """Records of their own size, or so large that a step each does not matter."""
        padded = self._padded(wanted, length) if self.spec.ragged else 0
        make = torch.zeros if self.spec.ragged else torch.empty
        found = {
            field.name: make(len(wanted), *field.shape_of(padded), dtype=field.torch_dtype)
            for field in self.spec.fields
        }
        targets = [_bytes(found[field.name]) for field in self.spec.fields]
        for row, position in enumerate(wanted.tolist()):
            shard, inside = divmod(position, self.spec.shard_samples)
            held = self._map(shard)
            start = int(held.offsets[inside]) if self.spec.ragged else inside * self._record
            size = int(held.lengths[inside]) if self.spec.ragged else 0
            for field, target in zip(self.spec.fields, targets, strict=True):
                place = _own_part(field, target[row], size)
                end = start + place.size
                place[...] = held.data[start:end].reshape(place.shape)
                start = end
        return found

    def _padded(self, wanted: Tensor, length: int | None) -> int:
        own = self.lengths(wanted)
        longest = int(own.max()) if len(own) else 0
        if length is not None and longest > length:
            raise CacheError(
                f"Cache {str(self.folder)!r}: position {int(wanted[own.argmax()])} is {longest} "
                f"long, but at most {length} were asked for. Are the texts cut off as they were "
                "when the cache was written?"
            )
        return longest if length is None else length

    def _wanted(self, positions: Tensor | Sequence[int]) -> Tensor:
        wanted = torch.as_tensor(positions).cpu()
        if wanted.numel() == 0:
            wanted = wanted.long()
        if wanted.ndim != 1 or wanted.is_floating_point() or wanted.dtype == torch.bool:
            raise CacheError(
                f"positions must be whole numbers (n,), got {wanted.dtype} of shape "
                f"{tuple(wanted.shape)}."
            )
        wanted = wanted.long()
        if len(wanted):
            low, high = (int(bound) for bound in wanted.aminmax())
            if low < 0 or high >= self.spec.samples:
                raise CacheError(
                    f"Cache {str(self.folder)!r} has positions 0 to {self.spec.samples - 1}, asked "
                    f"for {low if low < 0 else high}. Is the data set the one it was written for?"
                )
        return wanted

    def _map(self, shard: int) -> _Shard:
        if shard not in self._maps:
            if damage := self._damage(shard, verify=False):
                raise CacheError(
                    f"Shard {shard} of cache {str(self.folder)!r} {damage}. Run the tool that "
                    "wrote the cache again: it writes what is missing."
                )
            self._maps[shard] = _Shard.open(
                self.path(shard), self.spec.fields, len(self.positions(shard))
            )
        return self._maps[shard]

    # -- the index -----------------------------------------------------------------------------

    def _open(self) -> None:
        index = self.folder / _INDEX
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = sorted(os.listdir(self.folder))
            # Looked for after the listing: another process may be making the same cache just now.
            if not index.exists():
                self._create(index, found)
            text = index.read_bytes()
        except OSError as error:
            raise CacheError(
                f"The folder {str(self.folder)!r} cannot be used for a cache: "
                f"{error.strerror or error}."
            ) from error
        self._compare(index, text)

    def _create(self, index: Path, found: Sequence[str]) -> None:
        foreign = [name for name in found if not name.startswith(".") and _PART not in name]
        if foreign and not index.exists():
            raise CacheError(
                f"The folder {str(self.folder)!r} holds no cache but other files "
                f"({', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}). Give the cache "
                "a folder of its own."
            )
        text = json.dumps(self.spec.to_json(), indent=2, ensure_ascii=False) + "\n"
        with _complete(index, replace=False) as file:
            file.write(text.encode())

    def _compare(self, index: Path, text: bytes) -> None:
        try:
            stored = json.loads(text)
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            raise CacheError(
                f"{str(index)!r} is not the index of a cache. Give the cache a folder of its own."
            )
        if stored.get("version") != _VERSION:
            raise CacheError(
                f"Cache {str(self.folder)!r} is of version {stored.get('version')!r}, this release "
                f"reads version {_VERSION}. Write it anew, in another folder."
            )
        now = self.spec.to_json()
        if stored != now:
            raise CacheError(
                f"Cache {str(self.folder)!r} is of something else:{_differences(stored, now)}\n"
                "Change it back, or write another cache in another folder."
            )


@dataclass
class _Shard:
    """A shard mapped into memory."""

    data: np.ndarray
    """The bytes of the records."""
    records: np.ndarray
    """The same, one element a record; empty where they are ragged."""
    lengths: np.ndarray
    offsets: np.ndarray
    """How long each sample of a ragged shard is, and where it begins."""

    @classmethod
    def open(cls, path: Path, fields: Sequence[Field], records: int) -> _Shard:
        import numpy as np

        # torch closes the file after mapping it, so that many shards do not use up the files that a
        # process may hold open.
        size, none = path.stat().st_size, np.empty(0, np.int64)
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        data = mapped.numpy()[_HEADER:]
        if not any(field.ragged for field in fields):
            element = np.dtype((np.void, sum(field.bytes_of(0) for field in fields)))
            return cls(data, data.view(element), none, none)
        lengths = data[: 4 * records].view("<i4").astype(np.int64)
        sizes = np.zeros_like(lengths)
        for field in fields:
            sizes += field.bytes_of(1) * lengths**field.ragged
        ends = sizes.cumsum()
        data = data[4 * records :]
        if int(ends[-1]) != data.size:
            raise CacheError(
                f"Shard {str(path)!r} has {data.size} bytes of records, the lengths in it need "
                f"{int(ends[-1])}: it is damaged. Run the tool that wrote the cache again: it "
                "writes what is missing."
            )
        return cls(data, none, lengths, ends - sizes)


def _bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a contiguous tensor as an array that shares them; the last axis is longer."""
    return (tensor.unsqueeze(-1) if tensor.ndim < 2 else tensor).view(torch.uint8).numpy()


def _own_part(field: Field, padded: np.ndarray, length: int) -> np.ndarray:
    """The part of a padded sample's bytes that its length covers."""
    if not field.ragged:
        return padded
    last = length * field.torch_dtype.itemsize if field.shape[-1] == -1 else None
    return padded[
        (*(slice(length if axis == -1 else None) for axis in field.shape[:-1]), slice(last))
    ]


def _packed(
    fields: Sequence[Field], columns: Sequence[np.ndarray], lengths: Sequence[int]
) -> np.ndarray:
    """The records of ragged samples, one after another."""
    total = sum(field.bytes_of(length) for field in fields for length in lengths)
    packed, start = torch.empty(total, dtype=torch.uint8).numpy(), 0
    for row, length in enumerate(lengths):
        for field, column in zip(fields, columns, strict=True):
            part = _own_part(field, column[row], length)
            packed[start : start + part.size] = part.reshape(-1)
            start += part.size
    return packed


def _concatenated(field: Field, tensors: Sequence[Tensor]) -> Tensor:
    if not field.ragged:
        return torch.cat([*tensors])
    at = field.shape.index(-1) + 1
    shape = field.shape_of(max(tensor.shape[at] for tensor in tensors))
    joined = tensors[0].new_zeros(sum(map(len, tensors)), *shape)
    start = 0
    for tensor in tensors:
        part = joined[start : start + len(tensor)]
        part[tuple(slice(size) for size in tensor.shape)] = tensor
        start += len(tensor)
    return joined


def _digest(spec: CacheSpec) -> bytes:
    text = json.dumps(spec.to_json(), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _crc_of(file: BinaryIO, header: bytes) -> int:
    crc = zlib.crc32(header[: _HEAD.size])
    while chunk := file.read(1 << 20):
        crc = zlib.crc32(chunk, crc)
    return crc


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = _flat(then), _flat(now)
    lines = [
        f"\n  {key}: then {old.get(key, 'absent')}, now {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    return "".join(lines) or "\n  the fields come in another order"


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested JSON as one line a value."""
    if isinstance(value, dict) and value:
        found = {}
        for key, inner in value.items():
            if not prefix and key == "fields" and isinstance(inner, list):
                inner = {str(f.get("name")): f"{f.get('dtype')} {f.get('shape')}" for f in inner}
                key = "field"
            found.update(_flat(inner, f"{prefix}{key}" + ("." if isinstance(inner, dict) else "")))
        return found
    return {prefix.rstrip("."): value if isinstance(value, str) else json.dumps(value)}


@contextmanager
def _complete(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Write a file beside its place and put it there when it is complete.

    Args:
        path: Its name.
        replace: Whether one that is there is replaced; otherwise it stays.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_PART}")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            _place(part, path, replace=replace)
        except FileNotFoundError:
            # Another process has completed the same file, and cleared what was left beside it.
            if not path.exists():
                raise
        _sync_folder(path.parent)
        # What a killed process left of this file.
        for left in path.parent.glob(f"{path.name}.*{_PART}"):
            left.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, path: Path, *, replace: bool) -> None:
    if not replace:
        try:
            os.link(part, path)
            return
        except FileExistsError:
            return
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            pass
    os.replace(part, path)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
