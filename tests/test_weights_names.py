"""Name maps: all tensors of released files and all leaves of our trees, both ways."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from variables import CODES, NARROW, constants, entries

from migan_jax.families import all_kinds, from_tensors, to_tensors
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.layers import Reparam
from migan_jax.weights.architecture import infer_networks
from migan_jax.weights.kinds import build, describe
from migan_jax.weights.names import abstract_variables, is_constant

KEYS = Path(__file__).parent / "keys"
EXPANDED = Reparam("expanded", kernels=3)
# One of each kind, in the forms of files.
NETWORKS = {
    "migan_fused": migan.MIGANGenerator(**NARROW, reparam=Reparam("fused")),
    "migan_3_kernels": migan.MIGANGenerator(**NARROW, reparam=EXPANDED),
    "migan_1_kernel": migan.MIGANGenerator(**NARROW, reparam=Reparam("expanded", 1)),
    "comodgan": comodgan.CoModGANGenerator(**NARROW, **CODES),
    "migan_discriminator": discriminators.MIGANDiscriminator(
        **NARROW, reparam=EXPANDED
    ),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(**NARROW),
}


@functools.cache
def parameter_shapes(network):
    """Return names and shapes of all tensors except constants."""
    return {n: entry.tensor_shape for entry in entries(network) for n in entry.names}


def random_tensors(network, seed=0):
    """Return random tensors and the constants of a file of this network."""
    rng = np.random.default_rng(seed)
    random = {
        name: np.asarray(rng.standard_normal(shape), np.float32)
        for name, shape in parameter_shapes(network).items()
    }
    return random | constants(network)


def plausible_tensors(network):
    """Return random tensors with which activations stay small and z has an effect."""
    tensors = random_tensors(network)
    for name in parameter_shapes(network):
        if network == NETWORKS["migan_fused"] and tensors[name].ndim == 4:
            squares = np.sum(tensors[name] ** 2, axis=(1, 2, 3), keepdims=True)
            tensors[name] /= np.sqrt(squares)
        if name.startswith("mapping.") and name.endswith(".weight"):
            tensors[name] *= 100  # the inverse of the learning-rate multiplier
    return tensors


def kernels(form, count=9):
    return {"reparam": Reparam(form, count)}


# The network of each file in `keys`.
RELEASED = {
    **{
        f"migan_inference_G_{r}": migan.MIGANGenerator(r, **kernels("fused"))
        for r in (256, 512)
    },
    **{
        f"migan_train_G_{r}": migan.MIGANGenerator(r, **kernels("expanded"))
        for r in (256, 512)
    },
    **{
        f"migan_train_G_{r}_nrep1": migan.MIGANGenerator(r, **kernels("expanded", 1))
        for r in (256, 512)
    },
    **{
        f"migan_train_D_{r}": discriminators.MIGANDiscriminator(
            r, **kernels("expanded")
        )
        for r in (256, 512)
    },
    **{f"comodgan_G_{r}": comodgan.CoModGANGenerator(r) for r in (256, 512)},
    **{f"comodgan_D_{r}": discriminators.CoModGANDiscriminator(r) for r in (256, 512)},
    **{
        f"comodgan_D_{r}_default_chbase16384": discriminators.CoModGANDiscriminator(
            r, channel_base=16384
        )
        for r in (256, 512)
    },
}


def test_all_files_of_names_are_tested():
    assert {path.stem for path in KEYS.glob("*.json")} == set(RELEASED)


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_and_shapes(name):
    shapes = {
        key: tuple(shape)
        for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()
    }
    # Without memory for values: only names and shapes matter here.
    tensors = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    kinds = all_kinds()
    (network,) = infer_networks(tensors, kinds)
    assert network == RELEASED[name]
    assert build(json.loads(json.dumps(describe(network, kinds))), kinds) == network
    ours = [(n, entry.tensor_shape) for entry in entries(network) for n in entry.names]
    buffers = {key: value.shape for key, value in constants(network).items()}
    assert len(dict(ours)) == len(ours)
    assert not dict(ours).keys() & buffers.keys()
    assert {**dict(ours), **buffers} == shapes
    assert all(is_constant(key) for key in buffers)
    assert not any(is_constant(key) for key, _ in ours)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("migan_inference_G_256", 5_865_505),
        ("migan_inference_G_512", 5_893_158),
        ("migan_train_D_256", 39_002_835),
        ("comodgan_G_512", 79_792_231),
        ("comodgan_D_256", 28_864_257),
    ],
)
def test_trainable_parameters_of_released_networks(name, published):
    params = abstract_variables(RELEASED[name])["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


@pytest.mark.parametrize("name", NETWORKS)
def test_random_tensors_survive_bit_for_bit(name):
    network = NETWORKS[name]
    tensors = random_tensors(network)
    checkpoint = from_tensors(tensors)
    assert checkpoint.network == network
    back = to_tensors(checkpoint)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == np.float32
        assert back[key].shape == value.shape, key
        assert back[key].tobytes() == value.tobytes(), key


def test_layouts():
    tensors = random_tensors(NETWORKS["migan_fused"])
    checkpoint = from_tensors(tensors)
    block, name = checkpoint.params["synthesis"]["b16"], "synthesis.b16.conv1"
    noise = checkpoint.stats["synthesis"]["b16"]["conv1"]["noise"]["noise"]
    assert np.array_equal(noise, tensors[f"{name}.noise_const"])  # not transposed
    strength = block["conv1"]["noise"]["strength"]
    assert strength.shape == () and strength == tensors[f"{name}.noise_strength"]
    depthwise = block["conv1"]["depthwise"]["kernel"]  # [3, 3, 1, C]
    theirs = tensors[f"{name}.conv1.weight"]  # [C, 1, 3, 3]
    assert depthwise[0, 2, 0, 5] == theirs[5, 0, 0, 2]
    pointwise = block["conv1"]["pointwise"]["kernel"]  # [1, 1, I, O]
    assert pointwise[0, 0, 7, 3] == tensors[f"{name}.conv2.weight"][3, 7, 0, 0]


def test_layouts_of_dense_layers_and_averages():
    tensors = random_tensors(NETWORKS["comodgan"])
    checkpoint = from_tensors(tensors)
    mapping = checkpoint.params["mapping"]
    weight = tensors["mapping.fc0.weight"]  # [O, I]
    assert np.array_equal(mapping["fc0"]["weight"], weight.T)
    average = checkpoint.stats["mapping"]["w_avg"]
    assert np.array_equal(average, tensors["mapping.w_avg"])
    lowest = checkpoint.params["synthesis"]["b4"]["fc"]["weight"]
    assert np.array_equal(lowest, tensors["synthesis.b4.fc.weight"].T)


def test_several_kernels_keep_their_order():
    tensors = random_tensors(NETWORKS["migan_3_kernels"])
    stacked = from_tensors(tensors).params["encoder"]["b8"]["conv1"]["pointwise"]
    for index in range(3):
        theirs = tensors[f"encoder.b8.conv1.conv2.w{index}"]
        ours = stacked["kernels"][index, 0, 0]
        assert np.array_equal(ours, theirs[:, :, 0, 0].T)


def test_collapsed_kernels_have_no_names():
    network = migan.MIGANGenerator(**NARROW)
    with pytest.raises(ValueError, match="expand or fuse"):
        entries(network)


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_constants_equal_the_twins(name):
    pytest.importorskip("torch")
    from migan_jax.twins.build import build_twin

    network = NETWORKS[name]
    state = build_twin(network).state_dict()
    buffers = constants(network)
    ours = {n for entry in entries(network) for n in entry.names}
    assert ours | buffers.keys() == state.keys()
    for key, value in buffers.items():
        assert np.array_equal(value, state[key].numpy()), key
