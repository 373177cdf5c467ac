"""Runs of the trainer as processes of their own: tiny ones, that can be killed.

Compiled programs are kept from one to the next, so that starting costs seconds.
"""

import json
import os
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto.event_pb2 import Event

SETTINGS = {
    "resolution": 8,
    "batch_size": 4,
    "networks.dtype": "float32",
    "log_every_steps": 3,
    "save_every_steps": 4,
}
# Nothing is optimised: such small programs take longer to compile than to run.
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={}"

started = []  # processes, of which none should outlive its test


def environment(cache, devices=1):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS.format(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(workdir, steps, *more, **settings):
    settings = SETTINGS | {"total_kimg": steps * 4 / 1000} | settings
    return [
        sys.executable,
        "-m",
        "migan_jax.train",
        "--config=scenes64",
        "--smoke",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *map(str, more),
    ]


def run(module, *arguments, cache, devices=1):
    """Run a verb to its end; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment(cache, devices),
        capture_output=True,
        text=True,
        timeout=600,
    )


def train(workdir, steps, cache, *more, devices=1, **settings):
    """Train to the end; returns the finished process."""
    arguments = command(workdir, steps, *more, **settings)[2:]
    return run(*arguments, cache=cache, devices=devices)


def start(workdir, steps, cache, *more, devices=1, session=False, **settings):
    """Begin to train; with `session`, as the first of a group of processes."""
    arguments = command(workdir, steps, *more, **settings)[2:]
    return begin(*arguments, cache=cache, devices=devices, session=session)


def begin(module, *arguments, cache, devices=1, session=False):
    """Begin to run a verb."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment(cache, devices),
        start_new_session=session,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def end_started():
    """Kill what a test that failed has left."""
    while started:
        process = started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def steps(workdir):
    """Of which there are complete checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def saved(workdir, step=None):
    """Everything that a checkpoint holds, the newest if none is named."""
    folder = (workdir / "checkpoints").absolute() / str(step or steps(workdir)[-1])
    content = {"run": json.loads((folder / "run" / "metadata").read_text())}
    reader = ocp.PyTreeCheckpointer()
    for item in ("exported", "params", "optimizer"):
        tree = reader.metadata(folder / item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
        content[item] = reader.restore(folder / item, restore_args=as_numpy)
    return content


def metrics(workdir):
    """The lines of metrics.jsonl without what is measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
        for line in lines
    ]


def wait_for_metrics(process, workdir, lines):
    while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def assert_same(actual, expected):
    """Two runs came to the same: state, metrics, pictures."""
    assert metrics(actual) == metrics(expected)
    assert board(actual) == board(expected)
    ours, theirs = saved(actual), saved(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for picture in sorted((expected / "samples").iterdir()):
        assert (actual / "samples" / picture.name).read_bytes() == picture.read_bytes()


def board(workdir):
    """TensorBoard's scalars, (step, name, value), but for what is measured."""
    points = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        points += [
            (event.step, value.tag, value.simple_value)
            for event in events(path)
            for value in event.summary.value
            if not value.tag.startswith(("time/", "samples"))
        ]
    return points


def events(path):
    content, start = path.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        start += 12
        yield Event.FromString(content[start : start + length])
        start += length + 4
    assert start == len(content)
