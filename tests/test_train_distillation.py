"""Runs of distillation-guided inpainting: killed, resumed, used, on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import AxisType, Mesh
from test_families import Killed, StopAt
from test_systems_distillation import make

import migan_jax
from migan_jax.config import load_config
from migan_jax.systems.base import Inputs
from migan_jax.training.loop import train
from migan_jax.training.programs import initial_state
from migan_jax.training.setup import set_up
from migan_jax.training.step import split_batch

CONSTANT, MAIN, STEPS = 3, 4, 6  # first steps of the stages; in total
SETTINGS = (
    "batch_size=2",
    "resolution=16",
    "total_kimg=0.012",
    "distillation.pretraining_kimg=0.004",
    "distillation.meta_delay_kimg=0.002",
    "distillation.meta_every=1",
    "distillation.channels=2",
    "save_every_steps=1",
    "keep_last=8",
)


def continue_run(row, workdir, stop=None, kills=False):
    config = load_config(f"distillation_scenes64:{row}", SETTINGS, tiny=True)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    setup = set_up(config, workdir)
    with setup.checkpoints:
        return train(setup, StopAt(stop, kills))


@pytest.mark.slow
@pytest.mark.parametrize("row", ["net1", pytest.param("net8", marks=pytest.mark.full)])
def test_runs_resume_bit_for_bit_and_are_used(row, one_device, tmp_path):
    """Killed in pre-training, at the change of stage, and in main."""
    assert continue_run(row, tmp_path / "whole").step == STEPS
    workdir = tmp_path / "killed"
    for step in (CONSTANT - 1, CONSTANT, MAIN + 1):
        with pytest.raises(Killed):
            continue_run(row, workdir, step, kills=True)
        assert runs.steps(workdir)[-1] == step - 1
    continue_run(row, workdir)
    runs.assert_same(workdir, tmp_path / "whole")
    model = migan_jax.load(tmp_path / "whole")
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    hole = np.zeros((24, 40), np.bool_)
    hole[8:12, 8:20] = True
    result = model.inpaint(image, hole)
    assert (result != image).any(axis=-1)[hole].any()
    np.testing.assert_array_equal(result[:2], image[:2])


@pytest.mark.full
@pytest.mark.usefixtures("float64")
def test_devices_do_not_change_a_step():
    """Eight devices take the same bilevel step as one, and the discriminator's.

    Images are not split: then XLA's CPU runtime waits forever, some devices for one
    collective and the others for another.
    """
    settings = "resolution=64", "batch_size=8", "distillation.adversarial=0.1"
    config, system = make("net8", *settings)
    stage = system.stages()[-1]
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (8, 64, 64, 3))),
        "mask": jnp.asarray((rng.random((8, 64, 64, 1)) < 0.6).astype(np.float64)),
        "sample": jnp.arange(8),
    }

    def cast(x):
        return x.astype(jnp.float64) if x.dtype == jnp.float32 else x

    def take_turns(state, batch):
        batch = split_batch(batch, 1, 1)
        inputs = Inputs({}, batch, jax.random.key(0), jnp.zeros(()), jnp.zeros(()))
        metrics = {}
        for (turn,) in stage.turns:
            state, new = turn.update(turn, stage.optimizers, state, inputs)
            metrics |= new
        return state, metrics

    def run(devices):
        grid = np.array(jax.devices()[:devices]).reshape(-1, 1)
        mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
        with jax.set_mesh(mesh):
            state = jax.jit(lambda: initial_state(config, system))()
            state = jax.tree.map(cast, state)
            return jax.device_get(jax.jit(take_turns)(state, batch))

    (state, metrics), (expected_state, expected) = run(8), run(1)
    assert [turn.name for (turn,) in stage.turns] == ["generator", "discriminator"]
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-9), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
        state.params,
        expected_state.params,
    )
