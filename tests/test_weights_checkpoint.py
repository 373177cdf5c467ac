"""Checkpoints: which network a file holds, every misfit at once, forms, round trips."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_weights_names import (
    CODES,
    NARROW,
    NETWORKS,
    parameter_shapes,
    random_tensors,
)

from migan_jax.errors import UserError
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.layers import Reparam
from migan_jax.ops.conv import join_kernels
from migan_jax.weights.checkpoint import (
    from_tensors,
    is_file_name,
    load_checkpoint,
    load_file,
    save_checkpoint,
    to_form,
    to_tensors,
)
from migan_jax.weights.inference import Misfit, infer_network
from migan_jax.weights.names import constants
from migan_jax.weights.reading import read_tensors, write_tensors

FILES = pytest.mark.parametrize(
    "ending", [pytest.param(".pt", marks=pytest.mark.torch), ".safetensors"]
)
ONE = np.ones(1, np.float32)


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


def misfits(tensors):
    """What is wrong with these tensors, all of it."""
    with pytest.raises(Misfit) as caught:
        from_tensors(tensors)
    return sorted(caught.value.problems)


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert actual[name].tobytes() == value.tobytes(), name


def assert_same_trees(actual, expected):
    assert actual.network == expected.network
    jax.tree.map(np.testing.assert_array_equal, actual.variables, expected.variables)


# Which network it is.


@pytest.mark.parametrize("sizes", [(8, 70, 9), (32, 500, 1000), (16, 10**6, 7)])
@pytest.mark.parametrize("family", ["migan", "comodgan", "discriminator", "residual"])
def test_sizes_are_inferred(family, sizes):
    make = {
        "migan": lambda *a: migan.Generator(*a, reparam=Reparam("expanded", 2)),
        "comodgan": lambda *a: comodgan.Generator(*a, **CODES),
        "discriminator": lambda *a: discriminators.MIGANDiscriminator(
            *a, reparam=Reparam("expanded", 2)
        ),
        "residual": discriminators.CoModGANDiscriminator,
    }[family]
    shapes = parameter_shapes(make(*sizes))
    tensors = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    network = infer_network(tensors)
    # Several bases may give the same widths.
    assert parameter_shapes(network) == shapes


def test_order_of_tensors_does_not_matter():
    for network in NETWORKS.values():
        tensors = random_tensors(network)
        assert infer_network(dict(reversed(tensors.items()))) == network


NOTHING_KNOWN = {
    "nothing": {},
    "other names": {"conv.weight": np.ones((3, 3), np.float32)},
    "one level": {"synthesis.b4.torgb.weight": np.ones((3, 8, 1, 1), np.float32)},
    "no such level": {
        "synthesis.b99999999999.torgb.weight": np.ones((3, 8, 1, 1), np.float32)
    },
    "endless level": {f"synthesis.b{'9' * 5000}.torgb.weight": ONE},
    "too high": {"synthesis.b8192.torgb.weight": np.ones((3, 8, 1, 1), np.float32)},
    "no widths": {"synthesis.b16.torgb.weight": ONE, "mapping.fc0.weight": ONE},
    "empty widths": {
        "synthesis.b16.torgb.weight": np.ones((3, 0, 1, 1), np.float32),
        "synthesis.b8.torgb.weight": np.ones((3, 0, 1, 1), np.float32),
    },
    "too narrow": {"synthesis.b4.torgb.weight": np.ones((3, 1, 1, 1), np.float32)}
    | {"encoder.b4096.fromrgb.bias": ONE},
    "only vectors": {name: ONE for name in random_tensors(NETWORKS["comodgan"])},
}


@pytest.mark.parametrize("case", NOTHING_KNOWN)
def test_unknown_networks(case):
    with pytest.raises(Misfit, match="not those of a MI-GAN or Co-Mod-GAN"):
        from_tensors(NOTHING_KNOWN[case])


def test_resolution_that_is_no_power_of_two():
    tensors = random_tensors(NETWORKS["migan_fused"])
    renamed = {k.replace(".b16.", ".b24."): v for k, v in tensors.items()}
    with pytest.raises(Misfit, match="not those of"):
        from_tensors(renamed)


# Misfits: all of them, and only them.


@pytest.mark.parametrize("name", NETWORKS)
def test_every_misfit_is_listed_at_once(name):
    tensors = random_tensors(NETWORKS[name])
    bias, weight, other = sorted(k for k in tensors if k.endswith("bias"))[:3]
    length = tensors[weight].shape[0]
    bad = dict(tensors)
    missing_shape = list(bad.pop(bias).shape)
    bad[weight] = np.ones((length + 1, 2), np.float32)
    bad[other] = tensors[other].astype(np.int32)
    bad["b7.extra"] = ONE
    assert misfits(bad) == sorted(
        [
            f"missing: {bias}, shape {missing_shape}",
            f"{weight}: shape [{length + 1}, 2] instead of [{length}]",
            f"{other}: int32 instead of floating point",
            "not part of this network: b7.extra",
        ]
    )


EXTRA = [
    "synthesis.b7.conv1.bias",
    "synthesis.b64.conv1.bias",
    "synthesis.b99999999999.conv1.bias",
    f"synthesis.b{'9' * 5000}.conv1.bias",
    "synthesis.b4.torgb.w999999999",
    "1",
]


@pytest.mark.parametrize("name", ["migan_fused", "migan_3_kernels", "comodgan"])
@pytest.mark.parametrize("extra", EXTRA, ids=lambda name: name[:32])
def test_one_extra_tensor(extra, name):
    tensors = {**random_tensors(NETWORKS[name]), extra: ONE}
    assert misfits(tensors) == [f"not part of this network: {extra}"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("migan_fused", "synthesis.b8.torgb.weight"),
        ("migan_fused", "encoder.b16.fromrgb.weight"),
        ("migan_3_kernels", "synthesis.b8.torgb.w1"),
        ("comodgan", "synthesis.b8.torgb.weight"),
        ("comodgan", "mapping.fc1.weight"),
        ("comodgan", "mapping.fc1.bias"),
        ("comodgan", "encoder.b4.fc.weight"),
        ("comodgan", "synthesis.b4.fc.weight"),
        ("migan_discriminator", "b8.conv1.conv1.w0"),
        ("comodgan_discriminator", "b4.fc.weight"),
    ],
)
@pytest.mark.parametrize("factor", [0, 5])
def test_one_misshapen_tensor(name, tensor, factor):
    tensors = random_tensors(NETWORKS[name])
    shape = tensors[tensor].shape
    wrong = tuple(size * factor for size in shape)
    tensors[tensor] = np.zeros(wrong, np.float32)
    assert misfits(tensors) == [f"{tensor}: shape {list(wrong)} instead of {[*shape]}"]


def test_empty_latents():
    tensors = random_tensors(NETWORKS["comodgan"])
    tensors["mapping.fc0.weight"] = np.zeros((CODES["w_dim"], 0), np.float32)
    (problem,) = misfits(tensors)
    assert problem.startswith("mapping.fc0.weight: shape [10, 0] instead of [10,")


def test_a_missing_level():
    network = NETWORKS["migan_fused"]
    tensors = random_tensors(network)
    lost = [key for key in tensors if ".b8." in key]
    rest = {key: value for key, value in tensors.items() if key not in lost}
    parameters = [key for key in lost if key not in constants(network)]
    assert [p.split(",")[0] for p in misfits(rest)] == [
        f"missing: {key}" for key in sorted(parameters)
    ]


def test_all_shapes_wrong():
    tensors = random_tensors(NETWORKS["migan_fused"])
    grown = {
        name: value if "torgb.weight" in name else np.ones((2, 2), np.float32)
        for name, value in tensors.items()
    }
    counted = len(tensors) - len(constants(NETWORKS["migan_fused"]))
    levels = 3
    with pytest.raises(Misfit) as caught:
        from_tensors(grown)
    assert len(caught.value.problems) == counted - levels
    for problem in caught.value.problems:
        assert problem in str(caught.value)


def test_gaps_among_kernels():
    tensors = random_tensors(NETWORKS["migan_3_kernels"])
    without = {k: v for k, v in tensors.items() if k != "encoder.b8.conv1.conv1.w1"}
    assert misfits(without) == [
        "missing: encoder.b8.conv1.conv1.w1, shape [24, 1, 3, 3]"
    ]
    gaps = {k: v for k, v in tensors.items() if not k.endswith(".w1")}  # w0, w2
    layers = [k[:-3] for k in tensors if k.endswith(".w1")]
    problems = misfits(gaps)
    assert len(problems) == 2 * len(layers)
    for layer in layers:
        assert f"not part of this network: {layer}.w2" in problems


def test_values_that_are_not_finite():
    tensors = random_tensors(NETWORKS["comodgan"])
    tensors["mapping.fc0.weight"][0, 0] = np.nan
    tensors["synthesis.b8.torgb.bias"][0] = -np.inf
    assert misfits(tensors) == [
        "mapping.fc0.weight: holds NaN or infinity",
        "synthesis.b8.torgb.bias: holds NaN or infinity",
    ]


def test_constants_are_ignored():
    network = NETWORKS["migan_fused"]
    tensors = random_tensors(network)
    bare = {k: v for k, v in tensors.items() if k not in constants(network)}
    odd = {k: np.array([np.nan]) for k in constants(network)}
    expected = from_tensors(tensors)
    assert_same_trees(from_tensors(bare), expected)
    assert_same_trees(from_tensors({**bare, **odd}), expected)


def test_misfits_name_the_file_and_the_family(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {**random_tensors(NETWORKS["comodgan"]), "extra": ONE})
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path} does not fit: it looks like a comodgan at 16 px, but for 1 tensor:\n"
        f"  not part of this network: extra"
    )


def test_types_of_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = random_tensors(NETWORKS["migan_fused"])
    for kind in (np.float16, np.float64):
        write_tensors(path, {k: v.astype(kind) for k, v in tensors.items()})
        leaves = jax.tree.leaves(load_checkpoint(path).variables)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    for kind in (np.int8, np.int64, np.bool_):
        write_tensors(path, {k: v.astype(kind) for k, v in tensors.items()})
        with pytest.raises(UserError, match=f": {np.dtype(kind)} instead of floating"):
            load_checkpoint(path)


# Forms and round trips.


@FILES
@pytest.mark.parametrize("name", NETWORKS)
def test_files_survive_bit_for_bit(name, ending, tmp_path):
    network = NETWORKS[name]
    tensors = random_tensors(network)
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    write_tensors(first, tensors)
    checkpoint = load_file(first)
    assert checkpoint.network == network
    form = "fused" if name == "migan_fused" else "training"
    save_checkpoint(checkpoint, second, form)
    assert_same_bits(read_tensors(second), tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_workdirs_survive_bit_for_bit(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS[name]))
    form = "fused" if name == "migan_fused" else "training"
    save_checkpoint(checkpoint, tmp_path / "a", form)
    read = load_checkpoint(tmp_path / "a")
    if "kernel" not in name and "migan_d" not in name:
        assert_same_trees(read, checkpoint)
    else:
        assert read.network.reparam.form == "collapsed"
    save_checkpoint(read, tmp_path / "b", form)
    assert_same_trees(load_checkpoint(tmp_path / "b"), read)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", ["migan_3_kernels", "migan_1_kernel"])
def test_kernels_that_were_collapsed_come_back_with_the_same_sum(name, tmp_path):
    tensors = random_tensors(NETWORKS[name])
    expanded = from_tensors(tensors)
    write_tensors(tmp_path / "a.safetensors", tensors)
    collapsed = load_checkpoint(tmp_path / "a.safetensors")
    assert collapsed.network.reparam.form == "collapsed"
    save_checkpoint(collapsed, tmp_path / "b.safetensors", "training")
    again = load_file(tmp_path / "b.safetensors")
    assert again.network == expanded.network
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(again.variables),
        jax.tree.leaves(expanded.variables),
        strict=True,
    )
    for (path, ours), theirs in pairs:
        if path[-1].key == "kernels":
            ours, theirs = join_kernels(ours), join_kernels(theirs)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["migan_3_kernels", "migan_1_kernel", "migan_fused"])
def test_fusing_from_every_form(name):
    """What is saved as fused is fused: no n-kernel leaf is left, and norms are 1."""
    checkpoint = from_tensors(random_tensors(NETWORKS[name]))
    fused = to_form(checkpoint, "fused")
    assert fused.network.reparam.form == "fused"
    assert to_tensors(fused).keys() == random_tensors(NETWORKS["migan_fused"]).keys()
    if name != "migan_fused":
        kernel = fused.params["encoder"]["b8"]["conv1"]["pointwise"]["kernel"]
        norms = np.linalg.norm(kernel[0, 0], axis=0)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_fused_kernels_are_used_as_they_are():
    tensors = random_tensors(NETWORKS["migan_fused"])  # of any norm
    fused = to_form(from_tensors(tensors), "fused")
    assert_same_bits(to_tensors(fused), tensors)


def test_networks_with_one_form_only():
    for name in ("comodgan", "comodgan_discriminator"):
        checkpoint = from_tensors(random_tensors(NETWORKS[name]))
        assert to_form(checkpoint, "fused") is checkpoint
        assert to_form(checkpoint, "training") is checkpoint


def test_discriminators_are_not_fused(tmp_path):
    path = tmp_path / "d.safetensors"
    write_tensors(path, random_tensors(NETWORKS["migan_discriminator"]))
    checkpoint = load_checkpoint(path)
    with pytest.raises(UserError, match=r"no fused form.*--form=training") as caught:
        save_checkpoint(checkpoint, tmp_path / "out.safetensors", "fused")
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["d.safetensors"]


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_loads_into_a_twin(name, tmp_path):
    import torch

    from migan_jax.twins.build import build_twin

    network = NETWORKS[name]
    form = "fused" if name == "migan_fused" else "training"
    checkpoint = from_tensors(random_tensors(network))
    save_checkpoint(checkpoint, tmp_path / "x.pt", form)
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    build_twin(network).load_state_dict(state, strict=True)


# Outputs.


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("a.pt", True),
        ("a.pth", True),
        ("a.safetensors", True),
        ("a", False),
        ("v1.0", False),
        ("lr0.001", False),
        ("runs.old/a", False),
    ],
)
def test_names_of_outputs(name, is_file, tmp_path):
    assert is_file_name(tmp_path / name) is is_file


@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.pt2", "a.PT", "a.onnx", "a.pkl"])
def test_names_that_cannot_be_written(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    with pytest.raises(UserError, match="ending that cannot be written") as caught:
        save_checkpoint(checkpoint, tmp_path / name, "fused")
    assert str(tmp_path / name) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.safetensors", "a"])
def test_what_exists_is_kept(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        save_checkpoint(checkpoint, path, "fused")
    assert path.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="exists already"):
        save_checkpoint(checkpoint, path, "fused")
    assert os.listdir(path) == []
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        save_checkpoint(checkpoint, path, "fused")
    assert path.is_symlink() and os.listdir(tmp_path) == [name]


def test_workdir_below_a_file(tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="run cannot be written"):
        save_checkpoint(checkpoint, tmp_path / "file" / "run", "fused")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), UserError),
        (ValueError("OUT_OF_RANGE: No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_half_written_workdirs_vanish(failure, raised, tmp_path, monkeypatch):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))

    def fail(manager, step, args):
        (manager.directory / "0.tmp").mkdir()
        raise failure

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(raised) as caught:
        save_checkpoint(checkpoint, tmp_path / "run", "fused")
    if raised is UserError:
        assert f"{tmp_path / 'run'} cannot be written" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert os.listdir(tmp_path) == []


# Damaged workdirs.


@pytest.fixture(scope="module")
def sound_workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("workdirs") / "run"
    tensors = random_tensors(NETWORKS["comodgan_discriminator"])
    save_checkpoint(from_tensors(tensors), path, "training")
    return path


@pytest.fixture
def workdir(sound_workdir, tmp_path):
    shutil.copytree(sound_workdir, tmp_path / "run")
    return tmp_path / "run"


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_folders_that_are_no_workdir(tmp_path):
    (tmp_path / "x.pt").mkdir()
    assert "no folder checkpoints/" in refusal(tmp_path / "x.pt")
    (tmp_path / "x.pt" / "checkpoints").write_text("")
    assert "no folder checkpoints/" in refusal(tmp_path / "x.pt")


def test_workdirs_without_a_finished_checkpoint(workdir):
    step = workdir / "checkpoints" / "0"
    step.rename(workdir / "checkpoints" / "0.orbax-checkpoint-tmp")
    before = sorted(workdir.rglob("*"))
    assert "no finished checkpoint" in refusal(workdir)
    assert sorted(workdir.rglob("*")) == before


def test_unfinished_steps_are_left_alone(workdir):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "0", checkpoints / "5.orbax-checkpoint-tmp")
    (checkpoints / "notes.txt").write_text("mine")
    load_checkpoint(workdir)
    assert sorted(os.listdir(checkpoints)) == [
        "0",
        "5.orbax-checkpoint-tmp",
        "notes.txt",
    ]


def test_the_newest_step_counts(workdir):
    checkpoints = workdir / "checkpoints"
    for step in ("9", "10"):
        shutil.copytree(checkpoints / "0", checkpoints / step)
    shutil.rmtree(checkpoints / "9")
    (checkpoints / "9").mkdir()
    load_checkpoint(workdir)
    shutil.rmtree(checkpoints / "10" / "exported")
    assert "checkpoints/10 cannot be read" in refusal(workdir)


@pytest.mark.parametrize("item", ["network", "exported"])
def test_missing_items(item, workdir):
    shutil.rmtree(workdir / "checkpoints" / "0" / item)
    assert item in refusal(workdir)


SOUND = {"family": "comodgan_discriminator", **NARROW}
DESCRIPTIONS = {
    "empty": "",
    "half": '{"family": "comod',
    "list": "[]",
    "nothing": "{}",
    "family": json.dumps({**SOUND, "family": "unet"}),
    "field": json.dumps({**SOUND, "colour": 1}),
    "text": json.dumps({**SOUND, "resolution": "16"}),
    "no power of two": json.dumps({**SOUND, "resolution": 17}),
    "negative": json.dumps({**SOUND, "channel_max": -1}),
    "other resolution": json.dumps({**SOUND, "resolution": 32}),
    "enormous": json.dumps({**SOUND, "resolution": 2**40}),
    "other family": json.dumps({**SOUND, "family": "comodgan"}),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_damaged_descriptions(case, workdir):
    metadata = workdir / "checkpoints" / "0" / "network" / "metadata"
    assert json.loads(metadata.read_text()) == SOUND
    metadata.write_text(DESCRIPTIONS[case])
    assert "damaged or incomplete" in refusal(workdir)


def test_damaged_arrays(workdir):
    metadata = workdir / "checkpoints" / "0" / "exported" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:100])
    assert "damaged or incomplete" in refusal(workdir)


OTHER_WIDTHS = """
import sys
import migan_jax
from migan_jax.errors import UserError
try:
    migan_jax.load(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_arrays_of_other_shapes(workdir):
    """In a process of its own: Orbax leaves threads behind when a read fails."""
    metadata = workdir / "checkpoints" / "0" / "network" / "metadata"
    metadata.write_text(json.dumps({**SOUND, "channel_max": 23}))
    command = [sys.executable, "-c", OTHER_WIDTHS, str(workdir)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{workdir / 'checkpoints' / '0'} cannot be read" in said
    assert "shape" in said


def test_diverged_runs(tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["comodgan_discriminator"]))
    checkpoint.params["b4"]["fc"]["bias"] = np.full((24,), np.nan, np.float32)
    save_checkpoint(checkpoint, tmp_path / "run", "training")
    assert "NaN or infinity in 1 of " in refusal(tmp_path / "run")
