"""Read files of `torch.save` without PyTorch, and without running their code.

A file holds a pickle that describes objects, and the bytes of storages, the memory of
the tensors. Since PyTorch 1.6 it is a zip with `NAME/data.pkl` and an entry
`NAME/data/KEY` for each storage. The legacy format is a sequence of pickles (a magic
number, the format's version, the machine, the objects, the storages' keys), followed by
an element count and the bytes of each storage.

The pickle is not unpickled. `_parse_pickle` executes only the instructions that tensors
need, on a stack of plain values where functions are only names, and refuses others.
Values from a file may be nested without end, so they are not hashed, compared or
printed before their type is known. Memory is allocated for what the file holds, not for
what it claims.

Of a training checkpoint, whose entries are many networks and numbers, only the averaged
network is read.
"""

import math
import pickletools
import struct
import zlib
from collections.abc import Callable
from io import SEEK_CUR, SEEK_END, BytesIO
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import ml_dtypes
import numpy as np

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# In bytes: enough for 5000 tensors, and a malicious pickle takes seconds at most.
_MAX_PICKLE_SIZE = 2**20
_MAX_NAME_LENGTH = 300
_MAX_DIMENSIONS = 32  # the limit of older versions of numpy

# Where training checkpoints have the averaged weights, and where those have the tensors
# if they also describe how far a network has grown.
_AVERAGE, _TENSORS = "running_average_generator", "parameters"

_STORAGE_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
# Types with storages of untyped bytes; the tensor names the type.
_UNTYPED_DTYPES = (
    "uint16 uint32 uint64 float8_e5m2 float8_e5m2fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e8m0fnu"
).split()
_DTYPES = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name, name))
    for name in (*_STORAGE_DTYPES.values(), *_UNTYPED_DTYPES)
}
_DTYPES |= {
    f"torch.{k}Storage": _DTYPES[f"torch.{v}"] for k, v in _STORAGE_DTYPES.items()
}

_REBUILD = "torch._utils._rebuild_"
_TENSOR_CALLS = tuple(f"{_REBUILD}tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETER_CALLS = tuple(f"{_REBUILD}parameter{state}" for state in ("", "_with_state"))
_HARMLESS_CALLS = ("torch.Size", "torch.device", "torch.serialization._get_layout")
_LITERAL_OPCODES = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES"
).split()
_CODE_OPCODES = "BUILD NEWOBJ NEWOBJ_EX OBJ INST EXT1 EXT2 EXT4".split()


class NeedsCode(Exception):
    """The file calls a function that does not make tensors."""


class NotStateDict(Exception):
    """The file holds something else: (what, *names of values that are not tensors)."""


class NotPlain(Exception):
    """A tensor is more than a view of numbers: (name, reason)."""


class _Global(str):
    """The dotted name of a function, type or constant."""


class _Dict:
    """The pairs of a dictionary."""

    __slots__ = ("pairs",)  # saves memory: a pickle may make one per byte

    def __init__(self, pairs: list) -> None:
        self.pairs = pairs


class _Storage(NamedTuple):
    kind: _Global
    key: str
    count: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.count * (_DTYPES[self.kind].itemsize if self.kind in _DTYPES else 1)


class _Tensor(NamedTuple):
    """The call that makes a tensor."""

    function: _Global
    arguments: tuple


class _View(NamedTuple):
    """A plain tensor; offset and strides count elements."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Span(NamedTuple):
    """A range of bytes in the file."""

    offset: int
    size: int
    crc: int = 0  # in zips, unless PyTorch was set to omit it


_Parsed = tuple[dict[str, _View], dict[str, _Span]]  # tensors by name, storages by key


def read_state(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the tensors of a saved `state_dict()`, small floats as float32.

    Of a training checkpoint, read the averaged network's, and no other's storages.
    Tensors that share a storage share memory. Raises an exception of this module, or
    any other if the file is malformed.
    """
    start = file.read(4)
    length = file.seek(0, SEEK_END)
    file.seek(0)
    if start == b"PK\x03\x04":
        views, spans = _parse_zip(file, length)
    elif start.startswith(b"\x80"):
        views, spans = _parse_legacy(file, length)
    else:
        raise ValueError(f"it starts with {start!r}")
    seen: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}  # by storage, which tensors may share
    for storage, dtype, *_ in views.values():
        key, span = storage.key, spans[storage.key]
        if seen.setdefault(key, (storage, dtype)) != (storage, dtype):
            raise ValueError(f"storage {key} has two types")
        if span.size != storage.size:
            raise ValueError(f"storage {key} has {span.size} bytes")
        if key not in arrays:
            array = _read_span(file, length, span).view(dtype)
            small = dtype.itemsize < 4 and "float" in dtype.name
            arrays[key] = array.astype(np.float32) if small else array
    return {
        name: _make_array(view, arrays[view.storage.key])
        for name, view in views.items()
    }


def _parse_zip(file: BinaryIO, length: int) -> _Parsed:
    entries = ZipFile(file).infolist()
    root = entries[0].filename.partition("/")[0]
    names = {entry.filename for entry in entries}
    if f"{root}/constants.pkl" in names:
        raise NeedsCode("TorchScript")
    spans = {}
    for entry in entries:
        if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed")
        header = _read_span(file, length, _Span(entry.header_offset, 30))
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        spans[entry.filename] = _Span(start, entry.file_size, entry.CRC)
    total = sum(entry.file_size for entry in entries)
    if len(names) < len(entries) or total > length:
        raise ValueError("it holds the same data twice")
    objects, byte_order = spans[f"{root}/data.pkl"], spans.get(f"{root}/byteorder")
    if objects.size > _MAX_PICKLE_SIZE:
        raise ValueError("it describes too many objects")
    if byte_order and _read_span(file, length, byte_order).tobytes() != b"little":
        raise ValueError("its bytes are big-endian")
    views = _make_views(_parse_pickle(BytesIO(_read_span(file, length, objects))))
    keys = {view.storage.key for view in views.values()}
    return views, {key: spans[f"{root}/data/{key}"] for key in keys}


def _parse_legacy(file: BinaryIO, length: int) -> _Parsed:
    head = BytesIO(file.read(_MAX_PICKLE_SIZE))
    magic, version, _machine = (_parse_pickle(head) for _ in range(3))
    if magic != _MAGIC or version != _VERSION:
        raise ValueError("its header is not PyTorch's")
    storages: dict[str, _Storage] = {}  # also those of tensors that are not read
    views = _make_views(_parse_pickle(head, storages))
    keys, spans = _parse_pickle(head), {}
    file.seek(head.tell())
    for key in keys:
        if type(key) is not str:
            raise ValueError("the key of a storage is not text")
        storage = storages.pop(key)  # fails if a key is repeated
        if file.read(8) != struct.pack("<q", storage.count):
            raise ValueError(f"storage {key} has a wrong size")
        spans[key] = _Span(file.tell(), storage.size)
        file.seek(storage.size, SEEK_CUR)
    if file.tell() != length:
        raise ValueError("its length is wrong")
    return views, spans


def _read_span(file: BinaryIO, length: int, span: _Span) -> np.ndarray:
    """Read bytes; check that they exist before allocating memory."""
    if not 0 <= span.offset <= span.offset + span.size <= length:
        raise ValueError("it ends too early")
    content = np.empty(span.size, np.uint8)
    file.seek(span.offset)
    if file.readinto(content) != span.size:
        raise ValueError("it ends too early")
    if span.crc and span.crc != zlib.crc32(content):
        raise ValueError("its checksum is wrong")
    return content


def _parse_pickle(pickle: BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Parse a pickle up to its end, and return what it describes.

    Adds all storages that it names to `storages`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int | None = None) -> list:
        """Pop the last `count` values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if not 0 <= start <= len(stack):
            raise ValueError("its pickle pops too many values")
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND" | "APPENDS" as name:
                values = pop(1 if name == "APPEND" else None)
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS" as name:
                values = pop(2 if name == "SETITEM" else None)
                stack[-1].pairs.extend(zip(values[::2], values[1::2], strict=True))
            case "BINPERSID":
                storage = _make_storage(*pop(1))
                stack.append(storage)
                if storages is not None:
                    storages[storage.key] = storage
            case name if name in _LITERAL_OPCODES:
                stack.append(argument)
            case name:
                stack.append(_make_value(name, argument, pop))
    return stack.pop()


def _make_value(name: str, argument: Any, pop: Callable[..., list]) -> Any:
    """Execute an instruction that makes a value."""
    match name:
        case "NONE":
            return None
        case "NEWTRUE" | "NEWFALSE":
            return name == "NEWTRUE"
        case "EMPTY_LIST":
            return []
        case "EMPTY_DICT":
            return _Dict([])
        case "EMPTY_TUPLE":
            return ()
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            return tuple(pop(int(name[-1])))
        case "TUPLE":
            return tuple(pop())
        case "GLOBAL":
            return _make_global(*argument.split(" "))
        case "STACK_GLOBAL":
            return _make_global(*pop(2))
        case "REDUCE":
            return _make_call(*pop(2))
        case "BUILD":
            target, _ = pop(2)
            if type(target) is _Dict:  # sets a state dict's metadata
                return target
    if name in _CODE_OPCODES:
        raise NeedsCode(name)
    raise ValueError(f"its pickle has the unknown instruction {name}")


def _make_global(module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("a function's name is not text")
    if len(module) + len(name) > _MAX_NAME_LENGTH:  # each use makes a copy
        raise ValueError("a function's name is too long")
    return _Global(f"{module}.{name}")


def _make_storage(identity: Any) -> _Storage:
    match identity:
        case ("module", *_):
            raise NeedsCode("a module's source")
        case ("storage", _Global() as kind, str(key), _, int(count), *view):
            if count >= 0 and all(part is None for part in view):
                return _Storage(kind, key, count)
    raise ValueError("a storage is malformed")


def _make_call(function: Any, arguments: Any) -> Any:
    if type(function) is not _Global or type(arguments) is not tuple:
        raise ValueError("a call is malformed")
    if function == "collections.OrderedDict":  # Python 2 passes the pairs
        return _Dict(arguments[0] if arguments else [])
    if function in _PARAMETER_CALLS:
        return arguments[0]
    if function.startswith(_REBUILD):
        return _Tensor(function, arguments)
    if function in _HARMLESS_CALLS:
        return function
    raise NeedsCode(function)


def _make_views(state: Any) -> dict[str, _View]:
    """Return the tensors of a state dict by name; refuse anything else."""
    state = _find_average(state)
    if type(state) is not _Dict:
        raise NotStateDict(f"a {type(state).__name__.lstrip('_')}")
    if not state.pairs:
        raise NotStateDict("an empty dict")
    pairs = [(_make_name(key), value) for key, value in state.pairs]
    others = [name for name, value in pairs if type(value) is not _Tensor]
    if others:
        raise NotStateDict("values other than tensors", *others)
    return {name: _make_view(name, tensor) for name, tensor in pairs}


def _find_average(state: Any) -> Any:
    """Return the averaged network of a training checkpoint; anything else unchanged."""
    for name in (_AVERAGE, _TENSORS):
        pairs = state.pairs if type(state) is _Dict else []
        found = [v for k, v in pairs if type(k) is str and k == name]
        if not found or type(found[-1]) is not _Dict:
            break
        state = found[-1]
    return state


def _make_name(key: Any) -> str:
    parts = key if type(key) is tuple else (key,)
    plain = all(type(part) in (str, int, float, bool) for part in parts)
    if not plain or sum(len(str(part)) + 2 for part in parts) > _MAX_NAME_LENGTH:
        raise ValueError("a tensor's name is not text or too long")
    return str(key)


def _make_view(name: str, tensor: _Tensor) -> _View:
    if tensor.function not in _TENSOR_CALLS:
        raise NotPlain(name, f"made by {tensor.function}")
    storage, offset, shape, strides, *more = tensor.arguments
    kind = more.pop(2) if tensor.function == _TENSOR_CALLS[-1] else storage.kind
    if type(storage) is not _Storage or type(kind) is not _Global:
        raise ValueError(f"{name} has no storage or no type")
    if kind not in _DTYPES:
        raise NotPlain(name, f"of type {kind}")
    if more[2:] and (type(more[2]) is not _Dict or more[2].pairs):
        raise NotPlain(name, "conjugated or negated")
    if not len(shape) == len(strides) <= _MAX_DIMENSIONS or any(
        type(number) is not int or number < 0 for number in (offset, *shape, *strides)
    ):
        raise ValueError(f"{name} has a malformed shape")
    stored = storage.size // _DTYPES[kind].itemsize
    if math.prod(shape) > stored:
        raise NotPlain(name, "with more elements than are stored")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= stored:
        raise NotPlain(name, "with elements beyond its storage")
    return _View(storage, _DTYPES[kind], offset, tuple(shape), tuple(strides))


def _make_array(view: _View, stored: np.ndarray) -> np.ndarray:
    if 0 in view.shape:
        return np.empty(view.shape, stored.dtype)
    size = stored.itemsize
    pairs = zip(view.shape, view.strides, strict=True)
    strides = [step * size if n > 1 else size for n, step in pairs]
    return np.ndarray(view.shape, stored.dtype, stored, view.offset * size, strides)
