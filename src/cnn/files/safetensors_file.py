"""The safetensors container: packing arrays with a digest, and reading untrusted files.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name, dtype, shape and place of each
tensor, and a table of strings), and the tensors' bytes without gaps (https://github.com/huggingface/safetensors).

The library of that name is not used: it opens a path anew to read it (by then another file may be there), takes
duplicate names, and maps or allocates before anything like a digest is checked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
MOST_HEADER = 2 << 20  # bytes; JSON takes up to 30 times its length in memory. Enough for 5,000 layers
MOST_AXES = 8
BLOCK = 1 << 20  # bytes read at a time


class Tensor(NamedTuple):
    """What the header says of a tensor; `begin` and `end` are bytes from the end of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Container:
    """The checked header of an open file, and with it the way to the tensors.

    Parameters
    ----------
    file : binary file
        Open for reading; of `size` bytes.

    Raises
    ------
    ValueError
        If the header is invalid; the message says why. Up to 2 MiB have been read by then.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        if size < 8:
            raise ValueError("it is empty" if size == 0 else f"it is truncated: expected at least 8 bytes, got {size}")
        (length,) = struct.unpack("<Q", self._read(8))
        if length > size - 8:
            raise ValueError(f"it is truncated, or not a safetensors file: a header of {length} bytes in {size}")
        if length > MOST_HEADER:
            raise ValueError(f"expected a header of at most {MOST_HEADER} bytes, got {length}")
        self.data: int = 8 + length
        text = self._read(length)
        if text[:1] != b"{":
            raise ValueError("its header does not begin with {: it is not a safetensors file")
        self.header: Any = parsed(text, "header")
        table = self.header.get("__metadata__", {})
        if not (isinstance(table, dict) and all(isinstance(value, str) for value in table.values())):
            raise ValueError("__metadata__: expected a table of strings")
        self.metadata: dict[str, str] = table
        self.tensors: dict[str, Tensor] = {}
        end = 0
        entries = [(name, entry) for name, entry in self.header.items() if name != "__metadata__"]
        for name, entry in sorted(entries, key=_offsets):  # the header may name them in any order
            self.tensors[name] = tensor = _tensor(name, entry, end)
            end = tensor.end
        if self.data + end != size:
            raise ValueError(f"expected {self.data + end} bytes by its header, got {size}")

    def _read(self, n: int) -> bytes:
        content = self.file.read(n)
        if len(content) != n:
            raise ValueError("it was truncated while it was being read")
        return content

    def digest(self) -> str:
        """SHA-256 of the file: of its header without the digest, in one spelling, and of the tensors' bytes."""
        sha = _digest_of_header(self.header)
        self.file.seek(self.data)
        for at in range(self.data, self.size, BLOCK):
            sha.update(self._read(min(BLOCK, self.size - at)))
        return sha.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        self.file.seek(self.data)
        arrays = {}
        for name, tensor in self.tensors.items():
            arrays[name] = array = np.empty(tensor.shape, tensor.dtype)
            rest = array.reshape(-1).view(np.uint8).data
            while len(rest):
                n = self.file.readinto(rest[: 64 * BLOCK])  # type: ignore[attr-defined]
                if not n:
                    raise ValueError("it was truncated while it was being read")
                rest = rest[n:]
        return arrays


def _offsets(item: tuple[str, Any]) -> list[int]:
    """Where the tensor of an entry in the header lies; first, if the entry does not say so as it should."""
    offsets: Any = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    return offsets if _integers(offsets) else []


def _tensor(name: str, entry: Any, begin: int) -> Tensor:
    """A tensor's entry in the header, checked; it must begin where the one before it ends."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, got {short(entry)}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{name}: expected one of the dtypes {', '.join(DTYPES)}, got {short(kind)}")
    if not _integers(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"{name}: expected a shape of at most {MOST_AXES} integers, got {short(shape)}")
    if not _integers(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: expected two offsets, got {short(offsets)}")
    if offsets[0] != begin:
        what = "overlaps with the tensor before it" if offsets[0] < begin else "follows a gap"
        raise ValueError(f"{name}: {what}: it begins at byte {short(offsets[0])} instead of {begin}")
    bytes_ = math.prod(shape) * DTYPES[kind].itemsize  # Python's integers do not overflow
    if offsets[1] - begin != bytes_:
        raise ValueError(f"{name}: {short(offsets[1] - begin)} bytes do not hold {kind} of shape {short(shape)}")
    return Tensor(DTYPES[kind], tuple(shape), begin, offsets[1])


def _integers(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of integers of at least 0 that 63 bits can hold."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def short(value: Any) -> str:
    """For messages: what a damaged file holds may be long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parsed(text: bytes | str, what: str) -> Any:
    """A JSON text; ValueError if it is none, is not UTF-8, nests too deeply or has a name twice in one table."""

    def table(pairs):
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError(f"{what}: a table has the same name twice: {short([name for name, _ in pairs])}")
        return made

    try:
        return json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=table)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: expected UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: expected JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None


def _digest_of_header(header: dict[str, Any]):
    metadata = {name: value for name, value in header.get("__metadata__", {}).items() if name != "digest"}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True, separators=(",", ":"))
    import hashlib  # here, because it would be a third of the time that `import cnn` takes

    return hashlib.sha256(text.encode())


def pack(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """The bytes of a file, in pieces: of the same arrays and metadata always the same.

    The metadata gets an entry "digest", see `Container.digest`.

    Raises
    ------
    ValueError
        If there are so many arrays, or so much metadata, that the file could not be read again.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    little = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in tensors.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    content: list[memoryview] = []
    end = 0
    # In the order of the library: by dtype, wide ones first so that all are aligned, and by name.
    for name, a in sorted(little.items(), key=lambda item: (-list(codes).index(item[1].dtype), item[0])):
        header[name] = {"dtype": codes[a.dtype], "shape": list(a.shape), "data_offsets": [end, end + a.nbytes]}
        content.append(a.reshape(-1).view(np.uint8).data)
        end += a.nbytes
    sha = _digest_of_header(header)
    for piece in content:
        sha.update(piece)
    header["__metadata__"] = dict(sorted({**metadata, "digest": sha.hexdigest()}.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"a header of {len(text)} bytes is longer than the {MOST_HEADER} that can be read again")
    return [struct.pack("<Q", len(text)), text, *content]


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file open for reading, and its size. Anything else is refused without waiting for it.

    Raises
    ------
    OSError
        If it cannot be read, or is no regular file.
    ValueError
        If it was written to in the meantime.
    """
    _regular(os.stat(path), path)  # to open a device can do things already
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        before = os.fstat(handle)
        _regular(before, path)
        try:
            yield file, before.st_size
        except OSError as error:
            error.filename = error.filename or os.fspath(path)
            raise
        after = os.fstat(handle)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ValueError(f"{os.fspath(path)}: it was changed while it was being read")


def _regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"expected a regular file, got {kind}", os.fspath(path))
