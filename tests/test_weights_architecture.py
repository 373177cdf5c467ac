"""Inferring the network in a file, and listing all its mismatches."""

import jax
import numpy as np
import pytest
from test_weights_names import CODES, NETWORKS, parameter_shapes, random_tensors
from variables import assert_same_trees, constants

from migan_jax.errors import UserError
from migan_jax.families import all_kinds, from_tensors, load_checkpoint
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.layers import Reparam
from migan_jax.weights.architecture import (
    NetworkMismatch,
    UnknownNetwork,
    infer_networks,
)
from migan_jax.weights.tensor_files import write_tensors

ONE = np.ones(1, np.float32)


def problems_of(tensors):
    """Return all problems of these tensors."""
    with pytest.raises(NetworkMismatch) as caught:
        from_tensors(tensors)
    return sorted(caught.value.problems)


# Inference.


@pytest.mark.parametrize("sizes", [(8, 70, 9), (32, 500, 1000), (16, 10**6, 7)])
@pytest.mark.parametrize("family", ["migan", "comodgan", "discriminator", "residual"])
def test_sizes_are_inferred(family, sizes):
    make = {
        "migan": lambda *a: migan.MIGANGenerator(*a, reparam=Reparam("expanded", 2)),
        "comodgan": lambda *a: comodgan.CoModGANGenerator(*a, **CODES),
        "discriminator": lambda *a: discriminators.MIGANDiscriminator(
            *a, reparam=Reparam("expanded", 2)
        ),
        "residual": discriminators.CoModGANDiscriminator,
    }[family]
    shapes = parameter_shapes(make(*sizes))
    tensors = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    (network,) = infer_networks(tensors, all_kinds())
    # Not the networks: several bases may give the same widths.
    assert parameter_shapes(network) == shapes


def test_order_of_tensors_does_not_matter():
    for network in NETWORKS.values():
        tensors = random_tensors(network)
        backwards = dict(reversed(tensors.items()))
        assert infer_networks(backwards, all_kinds()) == [network]


UNKNOWN = {
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


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_networks(case):
    with pytest.raises(UnknownNetwork):
        from_tensors(UNKNOWN[case])


def test_resolution_that_is_not_a_power_of_two():
    tensors = random_tensors(NETWORKS["migan_fused"])
    renamed = {k.replace(".b16.", ".b24."): v for k, v in tensors.items()}
    with pytest.raises(UnknownNetwork):
        from_tensors(renamed)


# Mismatches: all of them, and only them.


@pytest.mark.parametrize("name", NETWORKS)
def test_all_mismatches_are_listed_at_once(name):
    tensors = random_tensors(NETWORKS[name])
    bias, weight, other = sorted(k for k in tensors if k.endswith("bias"))[:3]
    length = tensors[weight].shape[0]
    bad = dict(tensors)
    missing_shape = list(bad.pop(bias).shape)
    bad[weight] = np.ones((length + 1, 2), np.float32)
    bad[other] = tensors[other].astype(np.int32)
    bad["b7.extra"] = ONE
    assert problems_of(bad) == sorted(
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
    assert problems_of(tensors) == [f"not part of this network: {extra}"]


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
    assert problems_of(tensors) == [
        f"{tensor}: shape {list(wrong)} instead of {[*shape]}"
    ]


def test_empty_latents():
    tensors = random_tensors(NETWORKS["comodgan"])
    tensors["mapping.fc0.weight"] = np.zeros((CODES["w_dim"], 0), np.float32)
    (problem,) = problems_of(tensors)
    assert problem.startswith("mapping.fc0.weight: shape [10, 0] instead of [10,")


def test_a_missing_level():
    network = NETWORKS["migan_fused"]
    tensors = random_tensors(network)
    lost = [key for key in tensors if ".b8." in key]
    rest = {key: value for key, value in tensors.items() if key not in lost}
    parameters = [key for key in lost if key not in constants(network)]
    assert [p.split(",")[0] for p in problems_of(rest)] == [
        f"missing: {key}" for key in sorted(parameters)
    ]


def test_all_shapes_wrong():
    tensors = random_tensors(NETWORKS["migan_fused"])
    wrong = {
        name: value if "torgb.weight" in name else np.ones((2, 2), np.float32)
        for name, value in tensors.items()
    }
    count = len(tensors) - len(constants(NETWORKS["migan_fused"]))
    levels = 3
    with pytest.raises(NetworkMismatch) as caught:
        from_tensors(wrong)
    assert len(caught.value.problems) == count - levels
    for problem in caught.value.problems:
        assert problem in str(caught.value)


def test_gaps_among_kernels():
    tensors = random_tensors(NETWORKS["migan_3_kernels"])
    without = {k: v for k, v in tensors.items() if k != "encoder.b8.conv1.conv1.w1"}
    assert problems_of(without) == [
        "missing: encoder.b8.conv1.conv1.w1, shape [24, 1, 3, 3]"
    ]
    gaps = {k: v for k, v in tensors.items() if not k.endswith(".w1")}  # w0, w2
    layers = [k[:-3] for k in tensors if k.endswith(".w1")]
    problems = problems_of(gaps)
    assert len(problems) == 2 * len(layers)
    for layer in layers:
        assert f"not part of this network: {layer}.w2" in problems


def test_values_that_are_not_finite():
    tensors = random_tensors(NETWORKS["comodgan"])
    tensors["mapping.fc0.weight"][0, 0] = np.nan
    tensors["synthesis.b8.torgb.bias"][0] = -np.inf
    assert problems_of(tensors) == [
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


def test_mismatches_name_the_file_and_the_network(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {**random_tensors(NETWORKS["comodgan"]), "extra": ONE})
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    head, *problems = str(caught.value).splitlines()
    assert str(path) in head and "comodgan at 16 px" in head and "1 tensor" in head
    assert problems == ["  not part of this network: extra"]


def test_dtypes(tmp_path):
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
