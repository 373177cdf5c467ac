"""Read what `torch.save` wrote, without PyTorch, and without running any of it.

A file holds a pickle that describes objects, and the bytes of the storages, which are
the memory that tensors look into. Since PyTorch 1.6 it is a zip: `NAME/data.pkl`, and
an entry `NAME/data/KEY` for each storage. The older format is a row of pickles (a magic
number, the format's version, the machine, the objects, the storages' keys), and then
for each key a count and as many numbers.

The pickle is not unpickled. The few instructions that tensors need are followed on a
stack of plain values, where a function is nothing but its name; others are refused.
What comes from a file is neither hashed, compared nor printed before its type is known,
because it may be nested without end; and memory is taken for what the file holds, never
for what it claims.
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
_LONGEST = 2**20  # bytes of pickles: five thousand tensors, or seconds of a trap
_LONGEST_NAME = 300
_MOST_DIMENSIONS = 32  # that every numpy has

_STORAGES = {
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
# Their storages are untyped bytes, and the tensor has the type.
_OTHERS = (
    "uint16 uint32 uint64 float8_e5m2 float8_e5m2fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e8m0fnu"
).split()
_DTYPES = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name, name))
    for name in (*_STORAGES.values(), *_OTHERS)
}
_DTYPES |= {f"torch.{k}Storage": _DTYPES[f"torch.{v}"] for k, v in _STORAGES.items()}

_REBUILD = "torch._utils._rebuild_"
_TENSORS = tuple(f"{_REBUILD}tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETERS = tuple(f"{_REBUILD}parameter{state}" for state in ("", "_with_state"))
_HARMLESS = ("torch.Size", "torch.device", "torch.serialization._get_layout")
_LITERALS = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES"
).split()
_CODE = "BUILD NEWOBJ NEWOBJ_EX OBJ INST EXT1 EXT2 EXT4".split()


class NeedsCode(Exception):
    """The file calls something that does not make tensors."""


class NoStateDict(Exception):
    """The file holds something else: what, and the names of what does not belong."""


class NotPlain(Exception):
    """A tensor is more than a view of numbers: its name, and why."""


class _Global(str):
    """The dotted name of a function, type or constant."""


class _Dict:
    """The pairs of a dictionary."""

    __slots__ = ("pairs",)  # a pickle may make as many as it has bytes

    def __init__(self, pairs: list) -> None:
        self.pairs = pairs


class _Storage(NamedTuple):
    kind: _Global
    key: str
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * (_DTYPES[self.kind].itemsize if self.kind in _DTYPES else 1)


class _Tensor(NamedTuple):
    """The call that makes a tensor, as the file has it."""

    function: _Global
    arguments: tuple


class _View(NamedTuple):
    """A tensor that is plain; offset and strides count elements."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Place(NamedTuple):
    """Where the file has some bytes."""

    offset: int
    size: int
    crc: int = 0  # of zips, unless PyTorch was told to leave it out


_Found = tuple[dict[str, _View], dict[str, _Place]]  # tensors, and storages by key


def read_state(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of a saved `state_dict()`, small floats as float32.

    Tensors that share a storage still do. Raises one of the exceptions above, and any
    other where the file is malformed.
    """
    start = file.read(4)
    length = file.seek(0, SEEK_END)
    file.seek(0)
    if start == b"PK\x03\x04":
        views, places = _find_in_zip(file, length)
    elif start.startswith(b"\x80"):
        views, places = _find_in_row(file, length)
    else:
        raise ValueError(f"it starts with {start!r}")
    seen: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}  # one of a storage, however many look into it
    for storage, dtype, *_ in views.values():
        key, place = storage.key, places[storage.key]
        if seen.setdefault(key, (storage, dtype)) != (storage, dtype):
            raise ValueError(f"storage {key} has two types")
        if place.size != storage.size:
            raise ValueError(f"storage {key} has {place.size} bytes")
        if key not in arrays:
            array = _read(file, length, place).view(dtype)
            small = dtype.itemsize < 4 and "float" in dtype.name
            arrays[key] = array.astype(np.float32) if small else array
    return {
        name: _array(view, arrays[view.storage.key]) for name, view in views.items()
    }


def _find_in_zip(file: BinaryIO, length: int) -> _Found:
    entries = ZipFile(file).infolist()
    root = entries[0].filename.partition("/")[0]
    names = {entry.filename for entry in entries}
    if f"{root}/constants.pkl" in names:
        raise NeedsCode("TorchScript")
    places = {}
    for entry in entries:
        if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} in it is compressed")
        header = _read(file, length, _Place(entry.header_offset, 30))
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        places[entry.filename] = _Place(start, entry.file_size, entry.CRC)
    total = sum(entry.file_size for entry in entries)
    if len(names) < len(entries) or total > length:
        raise ValueError("it holds something twice")
    objects, order = places[f"{root}/data.pkl"], places.get(f"{root}/byteorder")
    if objects.size > _LONGEST:
        raise ValueError("it describes too many objects")
    if order and _read(file, length, order).tobytes() != b"little":
        raise ValueError("its bytes are in big-endian order")
    views = _views(_follow(BytesIO(_read(file, length, objects))))
    keys = {view.storage.key for view in views.values()}
    return views, {key: places[f"{root}/data/{key}"] for key in keys}


def _find_in_row(file: BinaryIO, length: int) -> _Found:
    head = BytesIO(file.read(_LONGEST))
    magic, version, _machine = (_follow(head) for _ in range(3))
    if magic != _MAGIC or version != _VERSION:
        raise ValueError("it does not start as PyTorch's files do")
    views = _views(_follow(head))
    storages = {view.storage.key: view.storage for view in views.values()}
    keys, places = _follow(head), {}
    file.seek(head.tell())
    for key in keys:
        if type(key) is not str:
            raise ValueError("the key of a storage is no text")
        storage = storages.pop(key)  # which comes once
        if file.read(8) != struct.pack("<q", storage.count):
            raise ValueError(f"storage {key} has another size")
        places[key] = _Place(file.tell(), storage.size)
        file.seek(storage.size, SEEK_CUR)
    if file.tell() != length:
        raise ValueError("it does not end where it should")
    return views, places


def _read(file: BinaryIO, length: int, place: _Place) -> np.ndarray:
    """Bytes that are known to be there before there is memory for them."""
    if not 0 <= place.offset <= place.offset + place.size <= length:
        raise ValueError("it ends too early")
    content = np.empty(place.size, np.uint8)
    file.seek(place.offset)
    if file.readinto(content) != place.size:
        raise ValueError("it ends too early")
    if place.crc and place.crc != zlib.crc32(content):
        raise ValueError("some of its bytes have changed")
    return content


def _follow(pickle: BytesIO) -> Any:
    """What a pickle describes, read up to its end."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int | None = None) -> list:
        """The last values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if not 0 <= start <= len(stack):
            raise ValueError("its pickle takes more than there is")
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
            case name if name in _LITERALS:
                stack.append(argument)
            case name:
                stack.append(_value(name, argument, pop))
    return stack.pop()


def _value(name: str, argument: Any, pop: Callable[..., list]) -> Any:
    """What an instruction makes, of the values that it takes."""
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
            return _global(*argument.split(" "))
        case "STACK_GLOBAL":
            return _global(*pop(2))
        case "BINPERSID":
            return _storage(*pop(1))
        case "REDUCE":
            return _call(*pop(2))
        case "BUILD":
            target, _ = pop(2)
            if type(target) is _Dict:  # a state dict, which gets its metadata
                return target
    if name in _CODE:
        raise NeedsCode(name)
    raise ValueError(f"its pickle has the instruction {name}")


def _global(module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name in it is no text")
    if len(module) + len(name) > _LONGEST_NAME:  # each use makes another
        raise ValueError("a name in it is too long")
    return _Global(f"{module}.{name}")


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("module", *_):
            raise NeedsCode("a module's source")
        case ("storage", _Global() as kind, str(key), _, int(count), *view):
            if count >= 0 and all(part is None for part in view):
                return _Storage(kind, key, count)
    raise ValueError("a storage in it is malformed")


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not _Global or type(arguments) is not tuple:
        raise ValueError("a call in it is malformed")
    if function == "collections.OrderedDict":  # Python 2 hands it the pairs
        return _Dict(arguments[0] if arguments else [])
    if function in _PARAMETERS:
        return arguments[0]
    if function.startswith(_REBUILD):
        return _Tensor(function, arguments)
    if function in _HARMLESS:
        return function
    raise NeedsCode(function)


def _views(state: Any) -> dict[str, _View]:
    """The tensors of a state dict by name; anything else is refused."""
    if type(state) is not _Dict:
        raise NoStateDict(f"a {type(state).__name__.lstrip('_')}")
    if not state.pairs:
        raise NoStateDict("an empty dict")
    pairs = [(_name(key), value) for key, value in state.pairs]
    others = [name for name, value in pairs if type(value) is not _Tensor]
    if others:
        raise NoStateDict("other things than tensors", *others)
    return {name: _view(name, tensor) for name, tensor in pairs}


def _name(key: Any) -> str:
    parts = key if type(key) is tuple else (key,)
    plain = all(type(part) in (str, int, float, bool) for part in parts)
    if not plain or sum(len(str(part)) + 2 for part in parts) > _LONGEST_NAME:
        raise ValueError("a tensor's name is no text, or too long")
    return str(key)


def _view(name: str, tensor: _Tensor) -> _View:
    if tensor.function not in _TENSORS:
        raise NotPlain(name, f"it is made by {tensor.function}")
    storage, offset, shape, strides, *more = tensor.arguments
    kind = more.pop(2) if tensor.function == _TENSORS[-1] else storage.kind
    if type(storage) is not _Storage or type(kind) is not _Global:
        raise ValueError(f"{name} has no storage or no type")
    if kind not in _DTYPES:
        raise NotPlain(name, f"its type is {kind}")
    if more[2:] and (type(more[2]) is not _Dict or more[2].pairs):
        raise NotPlain(name, "it is conjugated or negated")
    if not len(shape) == len(strides) <= _MOST_DIMENSIONS or any(
        type(number) is not int or number < 0 for number in (offset, *shape, *strides)
    ):
        raise ValueError(f"{name} has a malformed shape")
    stored = storage.size // _DTYPES[kind].itemsize
    if math.prod(shape) > stored:
        raise NotPlain(name, "it has more elements than are stored")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= stored:
        raise NotPlain(name, "it reaches beyond its storage")
    return _View(storage, _DTYPES[kind], offset, tuple(shape), tuple(strides))


def _array(view: _View, stored: np.ndarray) -> np.ndarray:
    if 0 in view.shape:
        return np.empty(view.shape, stored.dtype)
    size = stored.itemsize
    pairs = zip(view.shape, view.strides, strict=True)
    strides = [step * size if n > 1 else size for n, step in pairs]
    return np.ndarray(view.shape, stored.dtype, stored, view.offset * size, strides)
