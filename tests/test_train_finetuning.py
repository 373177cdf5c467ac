"""Fine-tuning a fused generator on other pictures loses nothing on the way."""

import pytest
import runs

from migan_jax.families import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.full  # a network has to learn something first

BATCH, EVALUATED, WARM_UP = 16, 10, 20  # the latter two in steps
SETTINGS = (
    "resolution=16",
    f"batch_size={BATCH}",
    "networks.channel_base=512",
    "networks.channel_max=32",
    "networks.dtype=float32",
    "data.mask_kind=brush",
    "data.draw_masks_on=host",
    "data.held_out=16",
)
LARGEST_LOSS = 1.0  # decibels


def train(recipe, workdir, cache, steps, *more, **settings):
    values = [*SETTINGS, f"total_kimg={steps * BATCH / 1000}"]
    values += [f"{key}={value}" for key, value in settings.items()]
    ended = runs.run(
        "migan_jax.train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        *(f"--config.{value}" for value in values),
        *more,
        cache=cache,
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in runs.metrics(workdir) if "eval/hole_psnr" in line]
    return {line["step"]: line for line in lines}, ended.stderr


@pytest.fixture(scope="module")
def fused(cache, tmp_path_factory):
    """A generator that fills holes in one family of scenes; no discriminator."""
    folder = tmp_path_factory.mktemp("before")
    settings = {
        "data.source": "scenes:leaves",
        "optimizer.ema_halflife_kimg": 0.2,
        "save_every_steps": 200,
    }
    figures, _ = train("scenes64", folder / "run", cache, 200, **settings)
    assert figures[200]["eval/hole_psnr"] > 1 + figures[200]["eval/mean_colour_psnr"]
    path = folder / "fused.safetensors"
    save_checkpoint(load_checkpoint(folder / "run"), path, "fused")
    return path


def test_the_held_out_figure_never_falls_far(fused, cache, tmp_path):
    settings = {
        "data.source": "scenes:grids",
        "optimizer.ema_halflife_kimg": 0.2,
        "optimizer.warmup_kimg": WARM_UP * BATCH / 1000,
        "save_every_steps": EVALUATED,
    }
    begun = f"--init-from={fused}"
    figures, said = train("finetune256", tmp_path / "run", cache, 60, begun, **settings)
    assert "generator; starting cold: discriminator and all optimisers" in said
    by_step = {step: line["eval/hole_psnr"] for step, line in figures.items()}
    assert list(by_step) == list(range(0, 61, EVALUATED))
    start = by_step[0]
    assert start > figures[0]["eval/mean_colour_psnr"]  # there is something to lose
    waiting = [by_step[step] for step in range(0, WARM_UP + 1, EVALUATED)]
    assert waiting == pytest.approx([start] * len(waiting), abs=1e-4)
    assert by_step[60] != pytest.approx(start, abs=1e-3)
    assert min(by_step.values()) > start - LARGEST_LOSS
