"""Random weights without compiling an initialiser; saving and comparing weights."""

import jax
import numpy as np

from migan_jax.weights.checkpoint import Checkpoint, save_checkpoint
from migan_jax.weights.names import abstract_variables


def random_variables(network, seed=0, dtype=np.float32):
    """Parameters and stats of a network, all N(0, 1), biases and strengths too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(dtype),
        abstract_variables(network),
    )


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
