"""Small networks, random weights without initialisers, saving and comparing weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.families import all_kinds, save_checkpoint
from migan_jax.weights import names
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.kinds import kind_of
from migan_jax.weights.names import abstract_variables

# Network sizes. Three levels of different widths:
NARROW = {"resolution": 16, "channel_base": 256, "channel_max": 24}
# Two levels, the minimum with all kinds of layers, to compile fast:
TINY = {"resolution": 8, "channel_base": 128, "channel_max": 20}
# Small widths for any resolution, for tests of inputs and outputs:
SLIM = {"channel_base": 128, "channel_max": 8}
# All different, to notice if they are swapped.
CODES = {"z_dim": 12, "w_dim": 10, "encoder_dim": 14}


def entries(network):
    """The network's leaves with their names in a file."""
    return names.entries(network, kind_of(network, all_kinds()))


def constants(network):
    """Constants in files of the network."""
    return kind_of(network, all_kinds()).constants(network)


def random_variables(network, seed=0, dtype=np.float32):
    """Draw all parameters and stats of a network from N(0, 1), even biases."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(dtype),
        abstract_variables(network),
    )


@functools.cache
def randomised(network, seed=1):
    """Return the network with random variables such that every parameter matters."""

    def scaled(path, leaf):
        keys = [key.key for key in path]
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
    """Assert that two checkpoints have the same network and weights."""
    assert actual.network == expected.network
    jax.tree.map(np.testing.assert_array_equal, actual.variables, expected.variables)


def saved_network(network, path, seed=0):
    """Save random weights as a workdir; return its path."""
    variables = random_variables(network, seed)
    checkpoint = Checkpoint(network, variables["params"], variables["stats"])
    save_checkpoint(checkpoint, path, "training")
    return path
