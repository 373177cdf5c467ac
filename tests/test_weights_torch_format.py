"""Reading PyTorch's files without PyTorch: the same tensors, and safe from traps."""

import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from test_weights_tensor_files import error_of

from migan_jax.weights.tensor_files import read_tensors

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

# The same tensors as PyTorch reads.


def assert_read_as_torch_does(path, torch):
    arrays, state = read_tensors(path), torch.load(path, weights_only=False)
    assert list(arrays) == [str(name) for name in state]
    for array, value in zip(arrays.values(), state.values(), strict=True):
        expected = value.detach()
        if expected.is_floating_point() and expected.element_size() < 4:
            expected = expected.float()
        assert array.dtype == expected.numpy().dtype
        assert array.shape == expected.shape
        assert array.tobytes() == expected.numpy().tobytes()
        assert array.flags.writeable


@pytest.mark.torch
@FORMATS
def test_types(zipped, tmp_path, torch):
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    kinds += ["complex64", "complex128"]
    kinds += ["uint16", "uint32", "uint64", "float8_e5m2"] if zipped else []
    numbers = torch.linspace(0, 5, 24).reshape(2, 3, 4)
    state = {kind: numbers.to(getattr(torch, kind)) for kind in kinds}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_read_as_torch_does(tmp_path / "x.pt", torch)


@pytest.mark.torch
@FORMATS
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_views(zipped, kind, tmp_path, torch):
    shared = torch.arange(60).to(getattr(torch, kind))
    blocks = shared.reshape(3, 4, 5)
    state = {
        "all": shared,
        "permuted": blocks.permute(2, 0, 1),
        "steps": blocks[::2, 1:, ::3],
        "windows": shared.unfold(0, 7, 9),
        "overlapping": shared.as_strided((5, 5), (1, 1), 3),
        "repeated": shared[:1].expand(4, 2),
        "end": shared[59],
        "scalar": torch.tensor(2.5),
        "empty": torch.ones(3, 0, 2),
        "empty end": shared[60:],
        "empty beyond": shared.as_strided((0, 2), (2, 1), 99),
        "no dimension but ones": torch.ones(1, 1, 1),
        "long step of one": torch.ones(3).as_strided((1, 3), (2**62, 1)),
    }
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_read_as_torch_does(tmp_path / "x.pt", torch)


@pytest.mark.torch
@FORMATS
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_modules_in_every_protocol(protocol, zipped, tmp_path, torch):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    module[1].extra = module[0].weight  # shared
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "with a state"
    module[0].register_parameter("noted", parameter)
    for content in (
        module.state_dict(),
        module.state_dict(keep_vars=True),
        dict(module.named_parameters()),
        OrderedDict(a=torch.ones(3).half()),
        {f"layer.{n}": torch.full((n,), n) for n in range(300)},
        {1: torch.ones(2), ("a", 2): torch.ones(1), 0.5: torch.ones(3)},
    ):
        torch.save(
            content,
            tmp_path / "x.pt",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        assert_read_as_torch_does(tmp_path / "x.pt", torch)


@pytest.mark.torch
def test_zips_without_checksums(tmp_path, torch):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5.0)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_read_as_torch_does(tmp_path / "x.pt", torch)


@pytest.mark.torch
@FORMATS
def test_reading_needs_no_torch(zipped, tmp_path, torch, monkeypatch):
    path, linear = tmp_path / "x.pt", torch.nn.Linear(3, 2)
    torch.save(linear.state_dict(), path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays = read_tensors(path)
    assert np.array_equal(arrays["weight"], linear.weight.detach().numpy())
    assert np.array_equal(arrays["bias"], linear.bias.detach().numpy())


def test_reading_imports_neither_jax_nor_torch():
    code = """
import sys
import migan_jax.weights.tensor_files
assert not {"jax", "flax", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Handmade files.


def push(value):
    """Return instructions that push a value; return instructions unchanged."""
    return value if isinstance(value, bytes) else pickle.dumps(value, 2)[2:-1]


def push_name(dotted):
    return "c{}\n{}\n".format(*dotted.rsplit(".", 1)).encode()


def call(function, *arguments):
    """Return instructions that call a function with arguments that others push."""
    return push_name(function) + b"(" + b"".join(arguments) + b"tR"


def storage(key="0", count=6, kind="torch.FloatStorage"):
    head = b"(" + push("storage") + push_name(kind)
    return head + push(key) + push("cpu") + push(count) + b"tQ"


def tensor(memory=None, offset=0, shape=(6,), strides=(1,), more=b"", version=2):
    view = push(offset) + push(shape) + push(strides)
    rest = b"\x89" + call("collections.OrderedDict") + more
    return call(f"{REBUILD}_v{version}", memory or storage(), view, rest)


def dictionary(**values):
    """Return instructions that push a dictionary of values that instructions push."""
    pairs = (push(name) + value for name, value in values.items())
    return b"}(" + b"".join(pairs) + b"u"


def state(*values, **more):
    """Return the pickle of a state dict with values that instructions push."""
    numbered = {f"t{n}": value for n, value in enumerate(values)}
    return b"\x80\x02" + dictionary(**numbered, **more) + b"."


REBUILD = "torch._utils._rebuild_tensor"
LARGE = struct.pack("<I", 2**32 - 1)
SIX = np.arange(6, dtype=np.float32).tobytes()


def write_zip(path, objects, storages=None, kind=zipfile.ZIP_STORED, **more):
    entries = {f"x/data/{key}": v for key, v in (storages or {"0": SIX}).items()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x/data.pkl", objects)
        for name, content in (entries | more).items():
            archive.writestr(name, content)


def write_legacy(path, objects, storages=None, keys=None, counts=None, size=4):
    storages = storages or {"0": SIX}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    counts = counts or [len(content) // size for content in storages.values()]
    tail = [
        struct.pack("<q", count) + content
        for count, content in zip(counts, storages.values(), strict=True)
    ]
    listed = push(list(storages) if keys is None else keys)
    path.write_bytes(b"".join([*head, objects, b"\x80\x02", listed, b".", *tail]))


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


def cheap_error_of(path, max_memory=4 * 2**20):
    """Return the error; check that reading took little memory beyond the pickle."""
    tracemalloc.start()
    try:
        message = error_of(path)
        limit = max_memory + 200 * path.stat().st_size
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    return message


@WRITERS
def test_handmade_files_are_read(write, tmp_path):
    write(tmp_path / "x.pt", state(tensor(), tensor(offset=1, shape=(), strides=())))
    arrays = read_tensors(tmp_path / "x.pt")
    assert np.array_equal(arrays["t0"], np.arange(6))
    assert arrays["t1"] == 1


@WRITERS
def test_large_memo_indices_take_no_memory(write, tmp_path):
    content = state(tensor()).replace(b"}", b"}r" + LARGE + b"j" + LARGE, 1)
    write(tmp_path / "x.pt", content)
    assert np.array_equal(read_tensors(tmp_path / "x.pt")["t0"], np.arange(6))


@WRITERS
def test_dictionaries_of_python_2(write, tmp_path):
    pair = b"](U\x01a" + tensor() + b"e"
    pairs = b"]" + pair + b"a"
    write(
        tmp_path / "x.pt", b"\x80\x02" + call("collections.OrderedDict", pairs) + b"."
    )
    assert np.array_equal(read_tensors(tmp_path / "x.pt")["a"], np.arange(6))


# Traps.


ENDLESS = 200_000  # deeper than any stack
DOUBLED = b")" + b"q\x07h\x07\x86" * 200  # 2^200 values when printed or hashed
MALFORMED_PICKLES = {
    "absent in the memo": b"\x80\x02j" + LARGE + b".",
    "length of text": b"\x80\x02X" + LARGE + b"a.",
    "length of bytes": b"\x80\x03B" + LARGE + b"a.",
    "length of long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
    "length of long bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fa.",
    "length of an array": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fa.",
    "length of a number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "no value": b"\x80\x02.",
    "no mark": b"\x80\x02}u.",
    "pop below a mark": b"\x80\x02})((\x87u.",
    "odd pairs": b"\x80\x02}(K\x01u.",
    "pairs of a number": b"\x80\x02K\x01(K\x01K\x01u.",
    "unknown instruction": b"\x80\x02\xff.",
    "instruction that makes a set": b"\x80\x04\x8f.",
    "text instead of a function": b"\x80\x02" + push("os") + b")R.",
    "list of arguments": b"\x80\x02" + push_name("collections.OrderedDict") + b"]R.",
    "identity of a storage": b"\x80\x02K\x01Q.",
    "many marks": b"\x80\x02" + b"(" * ENDLESS + b".",
    "endless list": b"\x80\x02]q\0h\0aq\1}h\1K\1s.",
    "doubled name": b"\x80\x02}" + DOUBLED + b"K\1s.",
    "doubled function": b"\x80\x04" + DOUBLED + DOUBLED + b"\x93.",
    "doubled identity": b"\x80\x04" + DOUBLED + b"Q.",
    "long name of a function": b"\x80\x04" + push("a" * 2000) + push("b") + b"\x93.",
    "long name": b"\x80\x02}" + push("a" * 2000) + tensor() + b"s.",
    "code as a name": b"\x80\x02}" + push_name("os.system") + tensor() + b"s.",
    "arguments": state(call(f"{REBUILD}_v2", push(1))),
    "no storage": state(tensor(push("0"))),
    "doubled offset": state(tensor(offset=DOUBLED)),
    "doubled shape": state(tensor(shape=DOUBLED, strides=DOUBLED)),
}


@WRITERS
@pytest.mark.parametrize("case", MALFORMED_PICKLES)
def test_malformed_pickles(case, write, tmp_path):
    write(tmp_path / "x.pt", MALFORMED_PICKLES[case])
    assert "damaged" in cheap_error_of(tmp_path / "x.pt")


def state_calling(function):
    """Return a pickle that calls a function beside a tensor."""
    return state(tensor(), call(function, push(1)))


@WRITERS
def test_calls_that_make_no_tensors_are_refused(write, tmp_path):
    path = tmp_path / "x.pt"
    for function in ("os.system", "builtins.eval", "torch.load", "torch._utils.x"):
        write(path, state_calling(function))
        assert "run code" in error_of(path)
    linear = push_name("torch.nn.Linear")
    for objects in (
        b"\x80\x02" + linear + b")\x81.",  # a new object
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x02(" + linear + b"o.",
        b"\x80\x02\x82\x01.",  # a class of copyreg's registry
        state(tensor() + b"}b"),  # attributes
        b"\x80\x02(" + push("module") + linear + push("x.py") + push("") + b"tQ.",
    ):
        write(path, objects)
        assert "run code" in error_of(path)


@WRITERS
def test_uncalled_functions_are_harmless(write, tmp_path):
    path = tmp_path / "x.pt"
    for value in (
        push_name("os.system"),
        call("torch.Size", push((1,))),
        call("torch.device", push("cpu")),
        storage(),
        DOUBLED,
    ):
        write(path, state(tensor(), value))
        assert "(t1)" in cheap_error_of(path)
    for objects, content in (
        (push_name("os.system"), "a Global"),
        (DOUBLED, "a tuple"),
        (tensor(), "a Tensor"),
    ):
        write(path, b"\x80\x02" + objects + b".")
        assert content in cheap_error_of(path)


def test_deep_nesting_does_not_overflow_the_stack(tmp_path):
    path = tmp_path / "x.pt"
    write_zip(path, state(b"]" * ENDLESS + b"a" * (ENDLESS - 1)))
    assert "(t0)" in error_of(path)
    name = push("running_average_generator")
    dictionaries = name + b"q\2}" + b"h\2}" * ENDLESS + b"s" * ENDLESS
    write_zip(path, b"\x80\x02}" + dictionaries + b"s.")
    assert "(running_average_generator)" in error_of(path)
    nested = b")" + b"\x85" * ENDLESS
    for objects in (
        b"\x80\x02}" + nested + tensor() + b"s.",
        state(tensor(storage(key=nested))),
        state(tensor(more=nested, version=3)),
    ):
        write_zip(path, objects)
        assert "damaged" in error_of(path)
    write_legacy(path, state(tensor()), keys=b"](" + nested + b"e")
    assert "damaged" in error_of(path)


# Training checkpoints: only the averaged network's tensors are read.


NUMBER = push(3)
LAYOUTS = {
    "bare": lambda tensors: tensors,
    "wrapped": lambda tensors: dictionary(parameters=tensors),
    "grown": lambda tensors: dictionary(
        transition_step=NUMBER, transition_value=push(0.5), parameters=tensors
    ),
}


def training_checkpoint(average, **more):
    other = tensor(storage("1", 2, "torch.HalfStorage"), shape=(2,))
    entries = {
        "D": dictionary(t0=other, t1=tensor(shape=(99,))),
        "optimizer": dictionary(state=dictionary(t0=other), groups=push([None, 0.5])),
        "global_step": NUMBER,
        "running_average_generator": average,
        "StatsLogger": dictionary(total=push("text"), last=push(True)),
    }
    return state(**entries, **more)


def write_training_checkpoint(write, path, objects, other=b"\0\x3c\0\x40"):
    """Write a file with a second storage, of 2-byte numbers, which nobody reads."""
    if write is write_zip:
        return write_zip(path, objects, {"0": SIX, "1": other})
    counts = [len(SIX) // 4, len(other) // 2]
    write_legacy(path, objects, {"0": SIX, "1": other}, counts=counts)


@WRITERS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_checkpoints(layout, write, tmp_path):
    path, average = tmp_path / "x.ckpt", LAYOUTS[layout](dictionary(a=tensor()))
    write_training_checkpoint(write, path, training_checkpoint(average))
    arrays = read_tensors(path)
    assert list(arrays) == ["a"]
    assert np.array_equal(arrays["a"], np.arange(6))


@pytest.mark.torch
@FORMATS
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_training_checkpoints_of_torch(protocol, zipped, tmp_path, torch):
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(4, 5))
    adam = torch.optim.Adam(network.parameters(), 0.1, (0.0, 0.99))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    average = {n: x + 1 for n, x in network.state_dict().items()}
    content = {
        "D": {"transition_step": 5, "parameters": OrderedDict(a=torch.ones(2).half())},
        "G": network.state_dict(),
        "optimizer": {"g_optimizer": adam.state_dict()},
        "global_step": 20_000_032,
        "running_average_generator": average,
        "CheckpointHook": {"next_validation_checkpoint": 10**20},
        "ImageSaveHook": {"before_images": torch.ones(3, 1).bfloat16()},
        "StatsLogger": {"total_time": 0.5, "last": None, "names": ("a", [True])},
    }
    torch.save(
        content,
        tmp_path / "x.ckpt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    arrays = read_tensors(tmp_path / "x.ckpt")
    assert list(arrays) == list(average)
    for name, array in arrays.items():
        assert array.tobytes() == average[name].numpy().tobytes()


def test_storages_of_other_networks_are_not_read(tmp_path):
    path, average = tmp_path / "x.ckpt", dictionary(a=tensor())
    endless = tensor(storage("2", 2**62), shape=(2**62,))
    write_zip(path, training_checkpoint(average, G=dictionary(a=endless)))
    assert list(read_tensors(path)) == ["a"]
    other = b"some bytes"
    write_training_checkpoint(write_zip, path, training_checkpoint(average), other)
    path.write_bytes(path.read_bytes().replace(other, other[::-1]))
    assert list(read_tensors(path)) == ["a"]


def test_false_counts_of_other_storages(tmp_path):
    path, average = tmp_path / "x.ckpt", dictionary(a=tensor())
    for count in (3, -2, 2**61, 2**62):
        other = tensor(storage("2", count), shape=(1,))
        objects = state(running_average_generator=average, G=dictionary(a=other))
        write_legacy(path, objects, {"0": SIX, "2": bytes(8)}, counts=[6, count])
        assert "damaged" in cheap_error_of(path)
    # A storage of the averaged network, elsewhere with another size.
    other = tensor(storage("0", 7))
    objects = state(running_average_generator=average, G=dictionary(a=other))
    write_legacy(path, objects, {"0": SIX + SIX[:4]})
    assert "damaged" in cheap_error_of(path)


@WRITERS
def test_code_in_other_entries_is_refused(write, tmp_path):
    path, average = tmp_path / "x.ckpt", dictionary(a=tensor())
    linear = push_name("torch.nn.Linear")
    for code in (
        call("os.system", push("touch ran")),
        call("numpy.core.multiarray.scalar", NUMBER),
        linear + b")\x81",
        b"(ios\nsystem\n",
        tensor() + b"}b",
    ):
        objects = training_checkpoint(average, MetricHook=dictionary(next=code))
        write_training_checkpoint(write, path, objects)
        assert "run code" in error_of(path)


@WRITERS
def test_training_checkpoints_without_an_averaged_network(write, tmp_path):
    path, tensors = tmp_path / "x.ckpt", dictionary(a=tensor())
    name, itself = push("running_average_generator"), push("parameters") + b"h\1s"
    for objects, expected in (
        (state(G=tensors, D=tensors, step=NUMBER), "(G, D, step)"),
        (state(parameters=tensors), "(parameters)"),
        (state(running_average_generator=NUMBER), "(running_average_generator)"),
        (state(G=dictionary(running_average_generator=tensors)), "(G)"),
        (training_checkpoint(dictionary(a=tensors)), "(a)"),
        (training_checkpoint(dictionary(parameters=NUMBER)), "(parameters)"),
        (training_checkpoint(LAYOUTS["wrapped"](LAYOUTS["grown"](tensors))), "(tr"),
        (training_checkpoint(b"}"), "an empty dict"),
        (training_checkpoint(LAYOUTS["grown"](b"}")), "an empty dict"),
        # Dictionaries that hold themselves.
        (b"\x80\x02}q\1" + itself + b".", "(parameters)"),
        (b"\x80\x02}q\1" + name + b"h\1s" + itself + b".", "(running_average"),
        (state(running_average_generator=b"}" + DOUBLED + b"}s"), "damaged"),
    ):
        write(path, objects)
        assert expected in cheap_error_of(path)


BEYOND = {
    "offset": {"offset": 1},
    "length": {"shape": (7,)},
    "stride": {"shape": (2,), "strides": (6,)},
    "large offset": {"offset": 2**63, "shape": (1,)},
    "large stride": {"shape": (2,), "strides": (2**63,)},
    "overflow of strides": {"shape": (2, 2), "strides": (2**63, 2**63)},
    "overflow of the shape": {"shape": (2**32, 2**32), "strides": (0, 0)},
    "expanded": {"shape": (7,), "strides": (0,)},
    "empty storage": {"memory": storage(count=0), "shape": (1,)},
    "scalar of an empty storage": {
        "memory": storage(count=0),
        "shape": (),
        "strides": (),
    },
}
MALFORMED_VIEWS = {
    "negative offset": {"offset": -1, "shape": (1,)},
    "negative stride": {"offset": 5, "strides": (-1,)},
    "negative shape": {"shape": (-6,)},
    "negative shapes": {"shape": (-2, -3), "strides": (3, 1)},
    "empty and endless": {"shape": (0, 2**70), "strides": (1, 1)},
    "many dimensions": {"shape": (1,) * 65, "strides": (1,) * 65},
    "missing stride": {"shape": (2, 3)},
    "fraction": {"shape": (6.0,)},
    "truth": {"shape": (True,)},
    "text": {"shape": "6"},
    "more than the storage": {"memory": storage(count=7)},
    "less than the storage": {"memory": storage(count=5), "shape": (5,)},
    "other type": {"memory": storage(kind="torch.HalfStorage")},
    "endless storage": {"memory": storage(count=2**62), "shape": (2**62,)},
    "negative storage": {"memory": storage(count=-6)},
    "absent storage": {"memory": storage(key="1")},
    "storage out of the archive": {"memory": storage(key="../../0")},
    "storage elsewhere": {"memory": storage(key="/etc/passwd")},
    "view of a storage": {"memory": storage().replace(b"tQ", push((0, 1)) + b"tQ")},
    "pickle as a storage": {"memory": storage(key="../data.pkl")},
}


@WRITERS
@pytest.mark.parametrize("case", BEYOND)
def test_views_beyond_the_storage(case, write, tmp_path):
    write(tmp_path / "x.pt", state(tensor(**BEYOND[case])))
    assert "t0 is not a plain tensor" in cheap_error_of(tmp_path / "x.pt")


@WRITERS
@pytest.mark.parametrize("case", MALFORMED_VIEWS)
def test_malformed_views(case, write, tmp_path):
    write(tmp_path / "x.pt", state(tensor(**MALFORMED_VIEWS[case])))
    assert "damaged" in cheap_error_of(tmp_path / "x.pt")


@WRITERS
def test_unknown_types(write, tmp_path):
    path = tmp_path / "x.pt"
    write(path, state(tensor(storage(kind="torch.QInt8Storage"))))
    assert "torch.QInt8Storage" in error_of(path)
    write(path, state(tensor(more=push({"neg": True}))))
    assert "negated" in error_of(path)
    write(path, state(tensor(), tensor(storage(kind="torch.IntStorage"))))
    assert "storage 0 has two types" in error_of(path)


@WRITERS
def test_shared_storages_share_memory(write, tmp_path):
    memory = storage(count=2**17, kind="torch.HalfStorage")
    views = [tensor(memory, offset=n, shape=(2**17 - n,)) for n in range(300)]
    size = {"size": 2} if write is write_legacy else {}
    write(tmp_path / "x.pt", state(*views), {"0": bytes(2**18)}, **size)
    tracemalloc.start()
    arrays = read_tensors(tmp_path / "x.pt")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert arrays["t299"].shape == (2**17 - 299,)


# Traps of zips.


def test_compressed_zips(tmp_path):
    path = tmp_path / "x.pt"
    endless = storage(count=2**24)
    objects = state(tensor(endless, shape=(2**24,)))
    write_zip(path, objects, {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert "compressed" in cheap_error_of(path)


def test_zips_with_repeated_data(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(path, "w") as archive:
            for content in (state(tensor()), state_calling("os.system")):
                archive.writestr("x/data.pkl", content)
    assert "twice" in error_of(path)
    views = [tensor(storage(key, 2**18), shape=(2**18,)) for key in "01"]
    write_zip(path, state(*views), {"0": bytes(2**20), "1": b"to be the same"})
    content = bytearray(path.read_bytes())
    first, second = (content.rindex(b"x/data/%d" % n) - 46 for n in (0, 1))
    for field in (slice(16, 28), slice(42, 46)):  # checksum, sizes and offset
        part = content[first + field.start : first + field.stop]
        content[second + field.start : second + field.stop] = part
    path.write_bytes(content)
    assert "twice" in cheap_error_of(path)


def test_changed_bytes(tmp_path):
    path = tmp_path / "x.pt"
    write_zip(path, state(tensor()))
    content = path.read_bytes()
    path.write_bytes(content.replace(SIX, SIX[::-1]))
    assert "checksum" in error_of(path)


def test_zips_with_other_content(tmp_path):
    path = tmp_path / "x.pt"
    write_zip(path, state(tensor()), **{"x/byteorder": b"big"})
    assert "big-endian" in error_of(path)
    write_zip(path, state(tensor()), **{"x/constants.pkl": b""})
    assert "run code" in error_of(path)
    write_zip(path, b"\x80\x02" + b"0" * 2**22)
    assert "too many" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/y", "")
    assert "data.pkl" in error_of(path)
    zipfile.ZipFile(path, "w").close()
    assert "damaged" in error_of(path)


# Traps of the legacy format.


LYING_LEGACY_FILES = {
    "fewer": {"counts": [5]},
    "more": {"counts": [7]},
    "endless": {"counts": [2**62]},
    "negative": {"counts": [-6]},
    "no keys": {"keys": []},
    "other keys": {"keys": ["1"]},
    "a key twice": {"keys": ["0", "0"]},
    "more keys": {"keys": ["0", "1"]},
    "number as a key": {"keys": [0]},
    "list as a key": {"keys": [[]]},
    "keys of another kind": {"keys": {"0": 1}},
    "text as keys": {"keys": 5},
}


@pytest.mark.parametrize("case", LYING_LEGACY_FILES)
def test_lying_counts_and_keys(case, tmp_path):
    write_legacy(tmp_path / "x.pt", state(tensor()), **LYING_LEGACY_FILES[case])
    assert "damaged" in cheap_error_of(tmp_path / "x.pt")


def test_false_counts_that_the_pickle_repeats(tmp_path):
    endless = tensor(storage(count=2**61), shape=(2**61,))
    write_legacy(tmp_path / "x.pt", state(endless), counts=[2**61])
    assert "damaged" in cheap_error_of(tmp_path / "x.pt")


def test_other_legacy_files(tmp_path):
    path = tmp_path / "x.pt"
    write_legacy(path, b"\x80\x02" + b"N" * 2**21 + b".")
    assert "exhausted" in error_of(path)
    write_legacy(path, state(tensor()))
    content = path.read_bytes()
    for part in (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)):
        path.write_bytes(content.replace(part, pickle.dumps(1, 2), 1))
        assert "header" in error_of(path)
