"""A run whose workdir is in a bucket is the run that it would be on a disk."""

import random
import time

import emulators
import pytest
import runs

from migan_jax.buckets import Bucket

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 15
RARELY = {"save_every_steps": 5}  # each checkpoint has 60 objects


def kill_at(process, moment):
    """Kill a run once `moment()` is true; return whether it had not ended before."""
    while process.poll() is None:
        if moment():
            process.kill()
            process.communicate()
            return True
        time.sleep(0.002)
    return False


def test_a_run_is_killed_three_times(cache, tmp_path):
    """Of a hundred requests, one fails or is not answered."""
    alone = tmp_path / "alone"
    assert runs.train(alone, STEPS, cache, **RARELY).returncode == 0
    rng = random.Random(0)
    with emulators.emulate("gs", fails=0.01) as (address, failures):
        bucket = Bucket(f"{address}/run")

        def uploading():
            """Whether a checkpoint is being uploaded, and not yet complete."""
            names = bucket.names("checkpoints/")
            steps = {name.split("/")[1] for name in names}
            return any(f"checkpoints/{s}/manifest.json" not in names for s in steps)

        moments = [
            lambda: bucket.read("metrics.jsonl") is not None,
            uploading,
            lambda: len(bucket.names("samples/")) > 2 and rng.random() < 0.5,
        ]
        killed = 0
        for moment in moments:
            process = runs.start(bucket.address, STEPS, cache, **RARELY)
            killed += kill_at(process, moment)
        assert killed == 3
        ended = runs.train(bucket.address, STEPS, cache, **RARELY)
        assert ended.returncode == 0, ended.stderr
        assert failures
        copy = tmp_path / "copy"
        bucket.download(bucket.names(), copy)
        image, mask = (
            (alone / "samples" / name).rename(tmp_path / name)  # not written to buckets
            for name in ("example.png", "example_mask.png")
        )
        runs.assert_same(copy, alone)
        inpainted = runs.run(
            "migan_jax.inpaint",
            f"--checkpoint={bucket.address}",
            f"--image={image}",
            f"--mask={mask}",
            f"--output={tmp_path / 'inpainted.png'}",
            cache=cache,
        )
        assert inpainted.returncode == 0, inpainted.stderr
