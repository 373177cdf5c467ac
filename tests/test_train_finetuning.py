"""Fine-tuning a fused generator on other images never loses much quality."""

import pytest
import runs

from migan_jax.families import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.full  # a network is pretrained first

BATCH = 16
EVAL_STEPS, WARM_UP_STEPS = 10, 20
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
MAX_LOSS = 1.0  # dB


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
    """A generator trained on one family of scenes, without its discriminator."""
    folder = tmp_path_factory.mktemp("before")
    settings = {
        "data.source": "scenes:leaves",
        "optimizer.ema_halflife_kimg": 0.2,
        "save_every_steps": 200,
    }
    metrics, _ = train("scenes64", folder / "run", cache, 200, **settings)
    assert metrics[200]["eval/hole_psnr"] > 1 + metrics[200]["eval/mean_colour_psnr"]
    path = folder / "fused.safetensors"
    save_checkpoint(load_checkpoint(folder / "run"), path, "fused")
    return path


def test_held_out_metric_never_drops_far(fused, cache, tmp_path):
    settings = {
        "data.source": "scenes:grids",
        "optimizer.ema_halflife_kimg": 0.2,
        "optimizer.warmup_kimg": WARM_UP_STEPS * BATCH / 1000,
        "save_every_steps": EVAL_STEPS,
    }
    init = f"--init-from={fused}"
    metrics, log = train("finetune256", tmp_path / "run", cache, 60, init, **settings)
    assert "generator; randomly initialised: discriminator and all" in log
    by_step = {step: line["eval/hole_psnr"] for step, line in metrics.items()}
    assert list(by_step) == list(range(0, 61, EVAL_STEPS))
    start = by_step[0]
    assert start > metrics[0]["eval/mean_colour_psnr"]
    warm_up = [by_step[step] for step in range(0, WARM_UP_STEPS + 1, EVAL_STEPS)]
    assert warm_up == pytest.approx([start] * len(warm_up), abs=1e-4)
    assert by_step[60] != pytest.approx(start, abs=1e-3)
    assert min(by_step.values()) > start - MAX_LOSS
