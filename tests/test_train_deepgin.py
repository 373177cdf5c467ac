"""Runs of DeepGIN: killed and resumed, on several devices, and used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from test_families import Killed, StopAt, assert_close
from test_models_deepgin import scaled
from variables import random_variables

from migan_jax.config import load_config
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models.deepgin import DeepGINDiscriminator, DeepGINGenerator
from migan_jax.models.vgg import NETWORKS, narrow
from migan_jax.systems.base import Inputs
from migan_jax.systems.deepgin import VGG, DeepGIN
from migan_jax.training.loop import train
from migan_jax.training.setup import set_up

STEPS, CHANGE = 6, 3  # in total, and in the warm-up
SETTINGS = (
    "resolution=16",
    "batch_size=2",
    "total_kimg=0.012",
    "deepgin.warmup_kimg=0.006",
    "deepgin.constant_kimg=0.002",
    "deepgin.decay_kimg=0.004",
    "deepgin.subsampling=2",
    "deepgin.variant=coarse_only",
    "data.mask_kind=deepgin",
    "save_every_steps=1",
    "keep_last=3",
)


def continue_run(workdir, stop=None, kills=False):
    config = load_config("deepgin_scenes64", SETTINGS, tiny=True)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    setup = set_up(config, workdir)
    with setup.checkpoints:
        return train(setup, StopAt(stop, kills))


@pytest.mark.slow
def test_killed_runs_resume_bit_for_bit(one_device, tmp_path):
    """Inside the warm-up, at the change of stages, and inside the main stage."""
    assert continue_run(tmp_path / "whole").step == STEPS
    for step in (CHANGE - 1, CHANGE, CHANGE + 2):
        workdir = tmp_path / f"killed_at_{step}"
        with pytest.raises(Killed):
            continue_run(workdir, step, kills=True)
        assert runs.steps(workdir)[-1] == step - 1
        continue_run(workdir)
        runs.assert_same(workdir, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("space", [pytest.param(1, marks=pytest.mark.full), 2])
def test_devices_do_not_change_losses_gradients_and_vectors(space):
    """Eight devices; a quarter of these images is tall enough to be split by rows."""
    system = DeepGIN(
        DeepGINGenerator(channels=4),
        DeepGINDiscriminator(channels=2),
        SAMPLERS["box"],
        {},
        None,
        vgg=narrow(NETWORKS[VGG], 32),
        vgg_resolution=32,
    )
    variables = {
        name: scaled(random_variables(network, dtype=np.float64))
        for name, network in system.networks.items()
    }
    params = {name: v["params"] for name, v in variables.items()}
    stats = {name: v.get("stats", {}) for name, v in variables.items()}
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(system.vgg.init, jax.random.key(0), image)
    rng = np.random.default_rng(1)
    frozen = {VGG: scaled(jax.tree.map(lambda x: rng.standard_normal(x.shape), shapes))}
    batch = {
        "image": rng.uniform(-1, 1, (8, 128, 16, 3)),
        "mask": (rng.random((8, 128, 16, 1)) < 0.6).astype(np.float64),
    }

    def run(devices, space):
        grid = np.array(jax.devices()[:devices]).reshape(-1, space)
        mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
        replicated = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec("data", "space"))

        def turn(params, stats, frozen, batch):
            inputs = Inputs(frozen, batch, jax.random.key(0), 0.0, 0.0)
            return jax.grad(system.players_loss, has_aux=True)(params, stats, inputs)

        with jax.set_mesh(mesh):
            arguments = (
                *jax.device_put((params, stats, frozen), replicated),
                (jax.device_put(batch, split)),
            )
            lowered = jax.jit(turn, out_shardings=replicated).lower(*arguments)
            program = lowered.compile({"xla_backend_optimization_level": 0})
            return jax.device_get(program(*arguments)), program.as_text()

    expected, _ = run(1, 1)
    ours, program = run(8, space)
    assert_close(ours, expected, 1e-9)
    # Scores of a device's own queries: of its samples, and of its rows.
    assert f"f64[{space},{32 // space},4,128]" in program
