"""Tiny training runs in processes of their own, which tests can kill.

They share a compilation cache, so that starting one takes seconds.
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
from tensorboardX.record_writer import masked_crc32c

SETTINGS = {
    "resolution": 8,
    "batch_size": 4,
    "networks.dtype": "float32",
    "log_every_steps": 3,
    "save_every_steps": 4,
}
# Without optimisation: such small programs take longer to compile than to run.
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={}"


def cache_settings(cache):
    """Return JAX's settings to share compiled programs between runs."""
    return {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }


started = []  # processes that must not outlive their test


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
    """Run a verb to its end; return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment(cache, devices),
        capture_output=True,
        text=True,
        timeout=600,
    )


def train(workdir, steps, cache, *more, devices=1, **settings):
    """Train to the end; return the finished process."""
    arguments = command(workdir, steps, *more, **settings)[2:]
    return run(*arguments, cache=cache, devices=devices)


def start(workdir, steps, cache, *more, devices=1, session=False, **settings):
    """Start training; `session` starts a new process group."""
    arguments = command(workdir, steps, *more, **settings)[2:]
    return start_verb(*arguments, cache=cache, devices=devices, session=session)


def start_verb(module, *arguments, cache, devices=1, session=False):
    """Start a verb; return its process."""
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
    """Kill processes that a failed test has left running."""
    while started:
        process = started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def steps(workdir):
    """Return the steps of the complete checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(workdir, step=None):
    """Read the contents of a checkpoint, by default of the newest one."""
    folder = (workdir / "checkpoints").absolute() / str(step or steps(workdir)[-1])
    content = {"run": json.loads((folder / "run" / "metadata").read_text())}
    content["run"].pop("clock", None)  # measured
    reader = ocp.PyTreeCheckpointer()
    for item in ("exported", "params", "optimizer"):
        tree = reader.metadata(folder / item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
        content[item] = reader.restore(folder / item, restore_args=as_numpy)
    return content


def metrics(workdir):
    """Read the lines of metrics.jsonl without timings."""
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
    """Assert that two runs have the same state, metrics and samples."""
    assert metrics(actual) == metrics(expected)
    assert board(actual) == board(expected)
    ours, theirs = read_checkpoint(actual), read_checkpoint(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for sample in sorted((expected / "samples").iterdir()):
        assert (actual / "samples" / sample.name).read_bytes() == sample.read_bytes()


def board(workdir):
    """Read TensorBoard's scalars (step, name, value) without timings."""
    points = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in events(path):
            if event.HasField("session_log"):  # a run resumed here
                points = [point for point in points if point[0] < event.step]
            points += [
                (event.step, value.tag, value.simple_value)
                for value in event.summary.value
                if not value.tag.startswith(("time/", "samples"))
            ]
    return points


def events(path):
    """Read events as TensorBoard does, up to the first damaged one."""
    content, start = path.read_bytes(), 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        for begin, end in (start, start + 8), (start + 12, start + 12 + length):
            checksum = struct.pack("<I", masked_crc32c(content[begin:end]))
            if content[end : end + 4] != checksum:
                return
        yield Event.FromString(content[begin:end])
        start = end + 4
