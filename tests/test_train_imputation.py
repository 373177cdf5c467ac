"""Runs of learnable feature imputation: killed, resumed, grown, on several devices."""

import jax
import numpy as np
import pytest
import runs
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from test_families import Killed, StopAt, assert_close
from variables import random_variables

import migan_jax
from migan_jax.config import load_config
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models.imputation import ImputationDiscriminator, ImputationGenerator
from migan_jax.systems.base import Inputs
from migan_jax.systems.imputation import Imputation
from migan_jax.training.loop import train
from migan_jax.training.setup import set_up

FADE, STEPS = 3, 8  # the first step of the second of three stages; in total
SETTINGS = (
    "batch_size=4",
    "total_kimg=0.032",
    "imputation.phase_kimg=0.012",
    "imputation.fade_every=1",
    "imputation.penalty_interval=2",
    "imputation.points=7",
    "data.source=scenes:faces",
    "data.points=scenes",
    "save_every_steps=1",
    "keep_last=8",
)


def continue_run(workdir, stop=None, kills=False):
    config = load_config("imputation_scenes64:c", SETTINGS, tiny=True)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    setup = set_up(config, workdir)
    with setup.checkpoints:
        return train(setup, StopAt(stop, kills))


@pytest.mark.slow
def test_growing_runs_resume_bit_for_bit_and_are_used(one_device, tmp_path):
    """Killed at a change of resolution and inside the fade-in."""
    assert continue_run(tmp_path / "whole").step == STEPS
    for step in (FADE, FADE + 2):
        workdir = tmp_path / f"killed_at_{step}"
        with pytest.raises(Killed):
            continue_run(workdir, step, kills=True)
        assert runs.steps(workdir)[-1] == step - 1
        continue_run(workdir)
        runs.assert_same(workdir, tmp_path / "whole")
    # A checkpoint completes at the resolution that its network had.
    image = np.random.default_rng(0).uniform(0, 1, (1, 16, 16, 3))
    known = np.ones((1, 16, 16, 1))
    known[:, 4:12, 4:12] = 0
    for step, side in ((FADE, 8), (FADE + 2, 16), (STEPS, 16)):
        model = migan_jax.load(tmp_path / "whole" / "checkpoints" / str(step))
        assert (model.network.grown, model.network.fades) == (side, step == FADE + 2)
        result = np.asarray(model.complete(image, known))[0, 4:12, 4:12]
        pairs = np.ptp(result.reshape(4, 2, 4, 2, 3), axis=(1, 3)).max()
        assert (pairs == 0) == (side == 8)


@pytest.mark.full
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("space", [1, 2])
def test_devices_do_not_change_losses_and_gradients(space):
    """Eight devices; the highest level is tall enough to be split by rows."""
    sizes = {"resolution": 64, "channel_base": 256, "channel_max": 8, "points": 7}
    system = Imputation(
        ImputationGenerator(**sizes, latents=4),
        ImputationDiscriminator(**sizes),
        SAMPLERS["box"],
        {},
    )
    params = {
        name: random_variables(network, dtype=np.float64)["params"]
        for name, network in system.networks.items()
    }
    # So that some gradients are longer than 1.
    params["discriminator"] = jax.tree.map(lambda x: 3 * x, params["discriminator"])
    stats = {"generator": {}, "discriminator": {}}
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.uniform(-1, 1, (8, 64, 64, 3)),
        "mask": (rng.random((8, 64, 64, 1)) < 0.6).astype(np.float64),
        "points": rng.random((8, 7, 2)),
        "sample": np.arange(8),
    }

    def run(devices, space):
        grid = np.array(jax.devices()[:devices]).reshape(-1, space)
        mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
        replicated = NamedSharding(mesh, PartitionSpec())
        shardings = {
            name: NamedSharding(
                mesh, PartitionSpec(*("data", "space")[: 2 if x.ndim == 4 else 1])
            )
            for name, x in batch.items()
        }

        def turns(params, batch):
            inputs = Inputs({}, batch, jax.random.key(0), 0.0, 0.0)
            losses = system.discriminator_loss, system.penalty_loss
            return [
                jax.value_and_grad(loss, has_aux=True)(params, stats, inputs)
                for loss in (*losses, system.generator_loss)
            ]

        with jax.set_mesh(mesh):
            arguments = (
                jax.device_put(params, replicated),
                jax.device_put(batch, shardings),
            )
            lowered = jax.jit(turns, out_shardings=replicated).lower(*arguments)
            program = lowered.compile({"xla_backend_optimization_level": 0})
            return jax.device_get(program(*arguments))

    expected, ours = run(1, 1), run(8, space)
    assert expected[1][0][1][1]["d/penalty"] > 0
    assert_close(ours, expected, 1e-9)
