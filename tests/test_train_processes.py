"""Multi-process runs equal single-process runs, and can resume each other.

Each process has CPU devices of its own; they communicate through localhost.
"""

import shutil
import signal
import socket
import subprocess

import jax
import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow  # each process compiles

STEPS = 8
HELD_OUT = {"data.held_out": 12}  # two batches, shared by the processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_all(workdir, steps, cache, processes, devices, *more, **settings):
    """Start connected processes."""
    port = free_port()
    return [
        runs.start(
            workdir,
            steps,
            cache / f"{processes}x{devices}-{index}",
            f"--coordinator=localhost:{port}",
            f"--processes={processes}",
            f"--process-id={index}",
            *more,
            devices=devices,
            **HELD_OUT,
            **settings,
        )
        for index in range(processes)
    ]


def end_all(processes, timeout=400):
    """Wait for the processes; return what they print. All must succeed."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise AssertionError([process.communicate() for process in processes]) from None
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    return outputs


def assert_close(actual, expected):
    """Compare weights; sums are in another order, and Adam amplifies rounding."""
    for name in ("exported", "params"):
        pairs = zip(*map(jax.tree.leaves, (actual[name], expected[name])), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=2e-2)


@pytest.fixture(scope="module")
def by_two(cache, tmp_path_factory):
    """Half of a run, by two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    outputs = end_all(start_all(workdir, STEPS // 2, cache, 2, 2))
    return workdir, outputs


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = runs.train(workdir, STEPS, cache, **HELD_OUT)
    assert ended.returncode == 0, ended.stderr
    return workdir


def test_only_the_first_process_writes(by_two, alone):
    workdir, ((out, error), (other_out, other_error)) = by_two
    assert "4 cpu in 2 processes, batch of 4 split 4 ways" in error
    assert f"finished {STEPS // 2} steps" in out
    assert "finished" not in other_out and "devices:" not in other_error
    ours, theirs = runs.metrics(workdir), runs.metrics(alone)
    assert [line["step"] for line in ours] == [0, 3, 4, 4]
    for mine, other in zip(ours, theirs, strict=False):
        shared = mine.keys() & other.keys() if mine["step"] == other["step"] else ()
        for name in shared:
            assert mine[name] == pytest.approx(other[name], rel=1e-2, abs=1e-2), name
    # Before training: each image counts once, whichever process completes it.
    assert theirs[0].keys() >= {"eval/hole_psnr", "eval/l1", "eval/mean_colour_psnr"}
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert_close(runs.read_checkpoint(workdir, 4), runs.read_checkpoint(alone, 4))


@pytest.mark.parametrize(
    "processes, devices", [(1, 1), pytest.param(4, 1, marks=pytest.mark.full)]
)
def test_saved_by_two_and_resumed_by_others(
    processes, devices, by_two, alone, cache, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(by_two[0], workdir)
    if processes == 1:
        ended = runs.train(workdir, STEPS, cache, devices=devices, **HELD_OUT)
        assert ended.returncode == 0, ended.stderr
        error = ended.stderr
    else:
        ((_, error), *_) = end_all(start_all(workdir, STEPS, cache, processes, devices))
    assert f"resuming at step {STEPS // 2}" in error
    assert_close(runs.read_checkpoint(workdir), runs.read_checkpoint(alone))
    logged = [line["step"] for line in runs.metrics(workdir)]
    assert logged == [0, 3, 4, 4, 6, 8, 8]


@pytest.mark.full
def test_two_processes_init_from_a_run(alone, cache, tmp_path):
    init = f"--init-from={alone}"
    ((_, error), _) = end_all(start_all(tmp_path / "run", 1, cache, 2, 2, init))
    assert "generator and discriminator; randomly initialised: all" in error


def test_sigterm_of_one_process_stops_all_at_the_same_step(cache, tmp_path):
    workdir = tmp_path / "run"
    processes = start_all(workdir, 100_000, cache, 2, 2)
    runs.wait_for_metrics(processes[0], workdir, 4)
    processes[1].send_signal(signal.SIGTERM)
    ((out, _), _) = end_all(processes)
    step = runs.steps(workdir)[-1]
    assert f"stopped at step {step}, saved" in out


@pytest.mark.full
def test_sigterm_while_compiling_ends_all_at_once(tmp_path):
    processes = start_all(tmp_path / "run", STEPS, tmp_path / "cold", 2, 1)
    for line in processes[0].stderr:
        if "compiling" in line:
            break
    processes[1].send_signal(signal.SIGTERM)
    ((out, error), _) = end_all(processes)
    assert "stopped: nothing was trained" in out
    assert "compiled in" not in error and runs.steps(tmp_path / "run") == []


def test_hosts_that_do_not_connect(cache, tmp_path):
    (process, *others) = start_all(
        tmp_path / "run", STEPS, cache, 1, 1, "--connect-timeout=3", "--processes=2"
    )
    _, error = process.communicate(timeout=120)
    assert not others and process.returncode == 1
    message = error.splitlines()[-1]
    assert message.startswith("error: ") and "3 seconds" in message
    assert "Traceback" not in error
