"""Networks of few channels, random weights without compiling an initialiser; saving and
comparing weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.families import all_kinds, save_checkpoint
from migan_jax.weights import names
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.kinds import kind_of
from migan_jax.weights.names import abstract_variables

# Sizes of networks in tests. Three levels, which differ in width:
NARROW = {"resolution": 16, "channel_base": 256, "channel_max": 24}
# two, which have everything a network has, where every compiled operation counts;
TINY = {"resolution": 8, "channel_base": 128, "channel_max": 20}
# and widths for any resolution, where only the way in and out matters.
SLIM = {"channel_base": 128, "channel_max": 8}
# All different, so that none can stand for another.
CODES = {"z_dim": 12, "w_dim": 10, "encoder_dim": 14}


def entries(network):
    """Every leaf of the network with its names in a file."""
    return names.entries(network, kind_of(network, all_kinds()))


def constants(network):
    """What files of the network hold besides."""
    return kind_of(network, all_kinds()).constants(network)


def random_variables(network, seed=0, dtype=np.float32):
    """Parameters and stats of a network, all N(0, 1), biases and strengths too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(dtype),
        abstract_variables(network),
    )


@functools.cache
def randomised(network, seed=1):
    """The network with random variables at which everything in it has an effect."""

    def scaled(path, leaf):
        keys = [part.key for part in path]
        scale = 0.5 if keys[-1] in ("bias", "strength") else 1
        if "mapping" in keys and "params" in keys:
            scale *= 100  # divided by the multiplier of the learning rate
        return jnp.asarray(scale * leaf)

    variables = random_variables(network, seed)
    return network, jax.tree_util.tree_map_with_path(scaled, variables)


def relative_l2(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    norm = np.linalg.norm(expected.ravel().astype(np.float64))
    return np.linalg.norm((actual - expected).ravel().astype(np.float64)) / norm


def assert_same_trees(actual, expected):
    """Two checkpoints hold the same network and the same weights."""
    assert actual.network == expected.network
    jax.tree.map(np.testing.assert_array_equal, actual.variables, expected.variables)


def saved_network(network, path, seed=0):
    """A workdir of random weights."""
    variables = random_variables(network, seed)
    checkpoint = Checkpoint(network, variables["params"], variables["stats"])
    save_checkpoint(checkpoint, path, "training")
    return path
