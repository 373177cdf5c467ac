"""Files of learnable feature imputation: names, inference, the authors' checkpoints."""

import dataclasses
import functools
import json
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from test_weights_tensor_files import Marker
from variables import assert_same_trees, random_variables

from migan_jax.errors import UserError
from migan_jax.families import all_kinds
from migan_jax.models.imputation import ImputationDiscriminator, ImputationGenerator
from migan_jax.weights import checkpoint as checkpoints
from migan_jax.weights import names
from migan_jax.weights.architecture import (
    NetworkMismatch,
    UnknownNetwork,
    infer_networks,
)
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.kinds import build, describe, kind_of
from migan_jax.weights.tensor_files import read_tensors, write_tensors

GOLDEN = Path(__file__).parent / "golden"
KINDS = all_kinds()
FDF = {"resolution": 128, "channel_base": 4096, "channel_max": 128, "points": 7}
PLACES = {"channel_base": 4096, "channel_max": 128}
RELEASED = {
    "fdf_E_G": ImputationGenerator(**FDF),
    "fdf_E_D": ImputationDiscriminator(**FDF),
    "places_E_G": ImputationGenerator(**PLACES),
    "places_E_D": ImputationDiscriminator(**PLACES),
    "places_E_conv_G": ImputationGenerator(**PLACES, imputes=False),
    "places_E_conv_D": ImputationDiscriminator(**PLACES),
    "places256_G": ImputationGenerator(),
    "places256_D": ImputationDiscriminator(),
}
SIZES = {"resolution": 16, "channel_base": 128, "channel_max": 24}
SMALL = {**SIZES, "latents": 5}
MAPS = {"points": 3, "pose": "maps"}
NETWORKS = {
    "code": ImputationGenerator(**SMALL),
    "scalars": ImputationGenerator(**SMALL, points=3),
    "maps": ImputationGenerator(**SMALL, **MAPS),
    "plain": ImputationGenerator(**SMALL, imputes=False),
    "paper": ImputationGenerator(**SMALL, form="paper", weighted_down=True),
    "one image": ImputationGenerator(**SMALL, sums=False),
    "grown": ImputationGenerator(**SMALL, grows=True, weighted_down=True),
    "grown from 4": ImputationGenerator(**SMALL, **MAPS, grows=True, smallest=4),
    "discriminator": ImputationDiscriminator(**SIZES),
    "scalars, discriminator": ImputationDiscriminator(**SIZES, points=3),
    "grown discriminator": ImputationDiscriminator(
        **SIZES, **MAPS, shortcuts=False, grows=True
    ),
}
FAST = "scalars", "plain", "grown", "grown discriminator"
EACH = pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.full) for n in NETWORKS],
)


@functools.cache
def shapes_of(network):
    """Return names and shapes of a file's tensors: of parameters, of constants."""
    kind = kind_of(network, KINDS)
    found = [(n, e.tensor_shape) for e in names.entries(network, kind) for n in e.names]
    assert len(dict(found)) == len(found)
    return dict(found), {n: x.shape for n, x in kind.constants(network).items()}


@functools.cache
def make(network, seed=0):
    """Return the network with random weights."""
    variables = {"stats": {}, **random_variables(network, seed)}
    return Checkpoint(network, variables["params"], variables["stats"])


@functools.cache
def tensors_of(network, seed=0):
    return checkpoints.to_tensors(make(network, seed), KINDS)


def load(path):
    (loaded,) = checkpoints.load_checkpoints(path, KINDS).values()
    return loaded


def save(checkpoint, path):
    checkpoints.save_checkpoints([checkpoint], path, "training", KINDS)


# Names, and networks from them.


@pytest.mark.parametrize(
    "name",
    [
        n if n.startswith("fdf") else pytest.param(n, marks=pytest.mark.full)
        for n in RELEASED
    ],
)
def test_released_names_and_shapes(name):
    shapes = json.loads((GOLDEN / f"imputation_{name}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    parameters, constants = shapes_of(RELEASED[name])
    assert parameters | constants == shapes
    assert all(names.is_constant(key) for key in constants)
    assert not any(names.is_constant(key) for key in parameters)
    # Without memory for values: only names and shapes matter here.
    tensors = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    assert infer_networks(tensors, KINDS) == [RELEASED[name]]


def test_all_golden_files_are_tested():
    found = {path.stem for path in GOLDEN.glob("imputation_*.json")}
    assert found >= {f"imputation_{name}" for name in RELEASED}


@EACH
def test_networks_are_inferred(name):
    network, tensors = NETWORKS[name], tensors_of(NETWORKS[name])
    assert infer_networks(tensors, KINDS) == [network]
    backwards = dict(reversed(tensors.items()))
    assert infer_networks(backwards, KINDS) == [network]
    description = json.loads(json.dumps(describe(network, KINDS)))
    assert build(description, KINDS) == network


@pytest.mark.parametrize(
    "channels", [(64, 1), (100, 20), (1000, 129), (4097, 20), (1000, 1000), (97, 60)]
)
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_any_channels_are_inferred(player, channels):
    network = ImputationDiscriminator(32, *channels)
    if player == "generator":
        network = ImputationGenerator(32, *channels, imputes=False)
    shapes, _ = shapes_of(network)
    tensors = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    (inferred,) = infer_networks(tensors, KINDS)
    # Not the networks: several widths of a generator give the same discriminator.
    assert shapes_of(inferred)[0] == shapes


def test_layouts():
    tensors = tensors_of(NETWORKS["scalars"])
    params = checkpoints.from_tensors(tensors, KINDS)["generator"].params
    layer, name = params["decoder"]["b16"]["conv1"], "decoder.basic_block16.layers.3"
    theirs = tensors[f"{name}.weight"]  # [O, I, 3, 3]
    assert layer["weight"][0, 2, 7, 5] == theirs[5, 7, 0, 2]
    theirs = tensors[f"{name}.expected_value_updater.input_updater.weight"]
    assert layer["estimator"]["weight"][1, 4, 0, 6] == theirs[6, 0, 1, 4]
    theirs = tensors[f"{name}.mask_updater.weight"]
    assert layer["certainty"]["weight"][0, 2, 0, 0] == theirs[0, 0, 0, 2]
    skip, name = params["decoder"]["b8"]["skip"], "decoder.skip_connection8"
    assert skip["encoder"] == tensors[f"{name}.beta0"]
    assert skip["decoder"] == tensors[f"{name}.beta1"]
    dense = params["decoder"]["pose"]["fc1"]["weight"]
    theirs = tensors["decoder.pose_fcnn.pose_preprocessor.3.weight"]
    assert np.array_equal(dense, theirs.T)


# Round trips.


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, ".safetensors") for name in FAST),
        *(
            pytest.param(name, ".safetensors", marks=pytest.mark.full)
            for name in NETWORKS
            if name not in FAST
        ),
        pytest.param("scalars", ".pt", marks=pytest.mark.torch),
        pytest.param("scalars, discriminator", ".pth", marks=pytest.mark.torch),
    ],
)
def test_files_survive_bit_for_bit(name, suffix, tmp_path):
    tensors, path = tensors_of(NETWORKS[name]), tmp_path / f"a{suffix}"
    write_tensors(path, tensors)
    save(load(path), tmp_path / f"b{suffix}")
    back = read_tensors(tmp_path / f"b{suffix}")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes(), key


@EACH
def test_workdirs_survive_bit_for_bit(name, tmp_path):
    checkpoint = make(NETWORKS[name])
    save(checkpoint, tmp_path / "a")
    assert_same_trees(load(tmp_path / "a"), checkpoint)


def test_both_networks_in_one_file():
    pair = NETWORKS["scalars"], NETWORKS["scalars, discriminator"]
    tensors = tensors_of(pair[0]) | tensors_of(pair[1])
    loaded = checkpoints.from_tensors(tensors, KINDS)
    assert list(loaded) == ["generator", "discriminator"]
    assert tuple(one.network for one in loaded.values()) == pair


def test_networks_that_grow_are_not_written_to_files(tmp_path):
    for fields in ({"grown": 8}, {"grown": 16, "fades": True}):
        for name in ("grown", "grown discriminator"):
            checkpoint = make(NETWORKS[name].clone(**fields))
            with pytest.raises(UserError, match="still grows"):
                save(checkpoint, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
    save(make(NETWORKS["grown"].clone(grown=16)), tmp_path / "x.safetensors")
    save(checkpoint, tmp_path / "run")
    assert_same_trees(load(tmp_path / "run"), checkpoint)


# The authors' files.


def older(tensors):
    """Return a generator's tensors as older files name them."""
    renamed = {
        re.sub(
            r"(basic_block|skip_connection)(\d+)",
            lambda match: f"{match[1]}{int(match[2]).bit_length() - 3}",
            name.replace("from_rgb.0", "encoder.from_rgb.conv.layers.0"),
        ): array
        for name, array in tensors.items()
    }
    unused = np.full(3, np.nan, np.float32)
    return renamed | {"decoder.to_rgb.conv.bias": unused, "decoder.to_rgb.x": unused}


@pytest.mark.parametrize("name", ["scalars", "plain"])
def test_older_names(name):
    # Many levels, since a number may be a place in one layout and a level in the other.
    network = NETWORKS[name].clone(resolution=64)
    tensors = tensors_of(network)
    renamed = older(tensors)
    assert "decoder.basic_block4.layers.0.bias" in renamed.keys() & tensors.keys()
    (actual,) = checkpoints.from_tensors(renamed, KINDS).values()
    (expected,) = checkpoints.from_tensors(tensors, KINDS).values()
    assert_same_trees(actual, expected)
    assert actual.network == network


def test_unused_copies_of_dense_layers():
    for name in ("scalars", "scalars, discriminator"):
        tensors = tensors_of(NETWORKS[name])
        copies = [key for key in tensors if ".linear." in key]
        assert len(copies) == (4 if name == "scalars" else 6)
        for copy in copies:
            assert tensors[copy].shape == tensors[copy.replace(".linear", "")].shape
            assert not tensors[copy].any()
        odd = {**tensors, **{copy: np.array([np.nan]) for copy in copies}}
        bare = {k: v for k, v in tensors.items() if k not in copies}
        for changed in (odd, bare):
            (actual,) = checkpoints.from_tensors(changed, KINDS).values()
            (expected,) = checkpoints.from_tensors(tensors, KINDS).values()
            assert_same_trees(actual, expected)


def as_torch(torch, tensors):
    return OrderedDict((k, torch.from_numpy(v.copy())) for k, v in tensors.items())


def training_checkpoint(torch, average, discriminator, generator):
    """Return what the authors' trainer saves."""
    moments = [{"exp_avg": x, "exp_avg_sq": x} for x in generator.values()]
    return {
        "D": {
            "transition_step": 5,
            "transition_value": 1.0,
            "parameters": discriminator,
        },
        "G": generator,
        "optimizer": {
            "d_optimizer": {"state": {}, "param_groups": [{"betas": (0.0, 0.99)}]},
            # Adam's states are kept by the addresses of parameters.
            "g_optimizer": {"state": {2**46 + n: x for n, x in enumerate(moments)}},
        },
        "global_step": 20_000_032,
        "running_average_generator": average,
        "CheckpointHook": {"next_validation_checkpoint": 20_200_000.0},
        "ImageSaveHook": {"next_save_point": 2e7, "before_images": None},
        "MetricHook": {"next_check": 20_200_000.0},
        "StatsLogger": {"total_time": 86_400.5, "num_skipped_steps": 3},
    }


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", ["bare", "older"])
def test_training_checkpoints(layout, zipped, tmp_path, torch):
    network, path = NETWORKS["scalars"], tmp_path / "fdf_E.ckpt"
    average, generator = (tensors_of(network, seed) for seed in (0, 1))
    if layout == "older":
        average, generator = older(average), older(generator)
    discriminator = tensors_of(NETWORKS["scalars, discriminator"])
    states = (as_torch(torch, x) for x in (average, discriminator, generator))
    content = training_checkpoint(torch, *states)
    if layout == "older":
        for name in ("G", "running_average_generator"):
            content[name] = {
                "transition_step": 2,
                "transition_value": 1.0,
                "parameters": content[name],
            }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same_trees(load(path), make(network, 0))
    content["MetricHook"]["next_check"] = Marker(tmp_path / "ran")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="run code") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_largest_training_checkpoint_is_not_too_long(zipped, tmp_path, torch):
    """As many tensors as the authors' file with most of them, all with one element."""
    generator, discriminator = (
        {name: torch.zeros(1) for name in shapes_of(network)[0]}
        for network in (RELEASED["places256_G"], RELEASED["places256_D"])
    )
    average = {name: x.clone() for name, x in generator.items()}
    content = training_checkpoint(torch, average, discriminator, generator)
    content["optimizer"]["d_optimizer"]["state"] = {
        2**47 + n: {"exp_avg": x.clone(), "exp_avg_sq": x.clone()}
        for n, x in enumerate([*generator.values(), *discriminator.values()])
    }
    path = tmp_path / "x.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_tensors(path).keys() == average.keys()


@pytest.mark.parametrize("imputes", [False, True])
def test_the_authors_grown_networks_are_read(imputes):
    """Files of rows A to D have an input and output layer more, and name all anew."""
    fields = {**SMALL, "points": 3, "grows": True, "smallest": 8}
    network = ImputationGenerator(**fields, imputes=imputes, weighted_down=imputes)
    critic = ImputationDiscriminator(
        **SIZES, **MAPS, shortcuts=False, grows=True, smallest=8
    )
    generator, discriminator = make(network), make(critic)
    stats = {"fade": np.ones((), np.float32)}
    generator = dataclasses.replace(generator, stats=stats)
    renamed = {}
    for checkpoint in (generator, discriminator):
        for name, array in checkpoints.to_tensors(checkpoint, KINDS).items():
            for pattern, theirs in (
                (r"^from_rgb\.16\.", "encoder.from_rgb.conv.layers.0."),
                (r"^from_rgb\.8\.", "encoder.from_rgb.old_conv.1.layers.0."),
                (r"^rgb_convolutions\.16\.", "decoder.to_rgb.conv."),
                (r"^rgb_convolutions\.8\.", "decoder.to_rgb.old_conv."),
                (r"^layers\.from_rgb\.16\.", "layers.from_rgb.conv.layers.0."),
                (r"^layers\.from_rgb\.8\.", "layers.from_rgb.old_conv.1.layers.0."),
                (r"(coder\.(basic_block|skip_connection))4\.", r"\g<1>0."),
                (r"(coder\.(basic_block|skip_connection))8\.", r"\g<1>1."),
                (r"(coder\.(basic_block|skip_connection))16\.", r"\g<1>2."),
            ):
                name = re.sub(pattern, theirs, name)
            if name not in ("fade", "encoder.weighted_down"):
                renamed[name] = array
    loaded = checkpoints.from_tensors(renamed, KINDS)
    for role, expected in {
        "generator": generator,
        "discriminator": discriminator,
    }.items():
        assert loaded[role].network == expected.network
        assert loaded[role].digest == expected.digest


# Other and damaged files.


def problems_of(tensors):
    with pytest.raises(NetworkMismatch) as caught:
        checkpoints.from_tensors(tensors, KINDS)
    return sorted(caught.value.problems)


@EACH
def test_all_mismatches_are_listed_at_once(name):
    tensors = tensors_of(NETWORKS[name])
    keys = sorted(k for k in tensors if re.search("block1.*layers.*bias", k))
    bias, weight = keys[0], keys[-1].replace("bias", "weight")
    shape = list(tensors[weight].shape)
    bad = {**tensors, weight: np.ones((2, 0, 1), np.float32), "extra.1": np.ones(1)}
    missing = list(bad.pop(bias).shape)
    assert problems_of(bad) == sorted(
        [
            f"missing: {bias}, shape {missing}",
            f"{weight}: shape [2, 0, 1] instead of {shape}",
            "not part of this network: extra.1",
        ]
    )


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("code", "rgb_convolutions.8.weight"),
        ("code", "from_rgb.0.weight"),
        ("code", "decoder.basic_block4.layers.0.bias"),
        ("code", "decoder.basic_block8.layers.0.weight"),
        ("scalars", "decoder.pose_fcnn.pose_preprocessor.1.weight"),
        ("discriminator", "layers.from_rgb.conv.layers.0.bias"),
        ("discriminator", "layers.basic_block0.layers.0.bias"),
        ("discriminator", "output_layer.weight"),
        ("scalars, discriminator", "layers.basic_block2.layers.0.bias"),
    ],
)
@pytest.mark.parametrize("factor", [0, 5])
def test_one_misshapen_tensor(name, tensor, factor):
    tensors = dict(tensors_of(NETWORKS[name]))
    right = list(tensors[tensor].shape)
    wrong = [factor * size for size in right]
    tensors[tensor] = np.zeros(wrong, np.float32)
    problems = problems_of(tensors)
    if "pose" not in tensor:
        assert problems == [f"{tensor}: shape {wrong} instead of {right}"]


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    "extra", ["from_rgb.", "rgb_convolutions.", "layers.from_rgb."]
)
@pytest.mark.parametrize("level", [4, 64, 99999])
def test_one_extra_level(extra, level):
    name = "discriminator" if extra.startswith("layers") else "plain"
    tensors = tensors_of(NETWORKS[name]) | {f"{extra}{level}.weight": ONE}
    assert any(f"{extra}{level}.weight" in problem for problem in problems_of(tensors))
    # At this level, the network would have no channel left.
    with pytest.raises(UnknownNetwork):
        checkpoints.from_tensors(tensors | {f"{extra}4096.weight": ONE}, KINDS)


UNKNOWN = {
    "one level": {"decoder.basic_block4.layers.0.bias": ONE},
    "no level": {"encoder.basic_block24.layers.0.bias": ONE},
    "only names": {f"encoder.basic_block{r}.layers.9.bias": ONE for r in (4, 8)},
    "scalars": {f"rgb_convolutions.{r}.weight": np.float32(1) for r in (4, 8)}
    | {"encoder.basic_block4.x": ONE},
    "empty": {"decoder.basic_block8.layers.3.bias": np.ones(0, np.float32)},
    "too narrow": {"decoder.basic_block4096.layers.0.bias": ONE}
    | {"decoder.basic_block4.layers.3.bias": ONE},
    "no such level": {f"encoder.basic_block{'9' * 5000}.x": ONE},
    "older, endless": {
        f"decoder.basic_block{'9' * 5000}.x": ONE,
        "decoder.basic_block0.x": ONE,
        "decoder.basic_block99.x": ONE,
        "rgb_convolutions.4.x": ONE,
    },
    "discriminator's place": {"layers.basic_block99.layers.0.bias": ONE},
    "discriminator's level": {"layers.basic_block0.layers.0.bias": ONE},
    "discriminator's names": {"layers.basic_block1.x": ONE},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_networks(case):
    with pytest.raises(UnknownNetwork):
        checkpoints.from_tensors(UNKNOWN[case], KINDS)


@pytest.mark.parametrize("name", ["scalars", "discriminator"])
def test_damaged_names_and_shapes(name):
    """All lists of problems are made, and no other exception is raised."""
    tensors, rng = tensors_of(NETWORKS[name]), np.random.default_rng(0)
    keys = list(tensors)
    for _ in range(12):
        changed = dict(tensors)
        for key in rng.choice(keys, rng.integers(1, len(keys)), replace=False):
            shape = rng.integers(0, 40, rng.integers(0, 5))
            replaced = np.broadcast_to(np.float32(0), shape)
            changed[key.replace("16", "4096") if rng.random() < 0.1 else key] = replaced
            if rng.random() < 0.3:
                changed.pop(key, None)
        with pytest.raises((UnknownNetwork, NetworkMismatch)):
            checkpoints.from_tensors(changed, KINDS)
