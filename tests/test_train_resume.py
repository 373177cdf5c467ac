"""A run that is killed, stopped or damaged resumes as if nothing had happened.

It is compared bit for bit with an uninterrupted run: parameters, optimisers, EMA,
metrics and samples, and thereby images and masks too.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import runs
from damages import damaged_copies

pytestmark = pytest.mark.slow  # every start of a process takes seconds

STEPS = 26


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = runs.train(workdir, STEPS, cache)
    assert ended.returncode == 0, ended.stderr
    return workdir


def finish(workdir, cache, alone, *more, **settings):
    ended = runs.train(workdir, STEPS, cache, *more, **settings)
    assert ended.returncode == 0, ended.stderr
    runs.assert_same(workdir, alone)
    return ended


def kill_while_saving(process, workdir, rng):
    """Kill as soon as a checkpoint is started, or a moment later."""
    before = set((workdir / "checkpoints").glob("*tmp*"))
    while process.poll() is None:
        if set((workdir / "checkpoints").glob("*tmp*")) - before:
            time.sleep(rng.choice([0, 0, 0.01, 0.05, 0.1, 0.3]))
            process.kill()
            return
        time.sleep(0.001)


def kill_at_any_time(process, workdir, rng):
    """Kill some time after the first new metrics."""
    path = workdir / "metrics.jsonl"
    before = path.stat().st_mtime if path.exists() else None
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime != before:
            time.sleep(rng.uniform(0, 3))
            process.kill()
            return
        time.sleep(0.001)


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.full)])
def test_repeated_kills(kills, alone, cache, tmp_path):
    rng, killed, runs_ended = random.Random(0), 0, 0
    while killed < kills:
        workdir = tmp_path / f"run{runs_ended}"
        process = runs.start(workdir, STEPS, cache)
        kill = kill_at_any_time if killed % 2 else kill_while_saving
        kill(process, workdir, rng)
        _, error = process.communicate()
        assert "Traceback" not in error
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:  # it finished before
            assert process.returncode == 0, error
            runs.assert_same(workdir, alone)
            runs_ended += 1
    finish(tmp_path / f"run{runs_ended}", cache, alone)


@pytest.mark.full
def test_signal_before_the_first_step(tmp_path):
    process = runs.start(tmp_path / "run", STEPS, tmp_path / "cold")
    for line in process.stderr:
        if "compiling" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "nothing was trained" in out
    assert "compiled in" not in error and "Traceback" not in error


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_signal_saves(signum, alone, cache, tmp_path):
    """SIGTERM and Ctrl-C save at any step, and exit with status 0."""
    workdir = tmp_path / "run"
    process = runs.start(workdir, STEPS, cache)
    runs.wait_for_metrics(process, workdir, 3)
    process.send_signal(signum)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    step = runs.steps(workdir)[-1]
    assert 0 < step < STEPS and f"stopped at step {step}, saved" in out
    ended = finish(workdir, cache, alone)
    assert f"resuming at step {step}" in ended.stderr
    again = finish(workdir, cache, alone)
    assert "compil" not in again.stderr and f"finished {STEPS} steps" in again.stdout


@pytest.mark.full
def test_signal_to_loader_processes_too(alone, cache, tmp_path):
    """Schedulers signal the whole group; loader processes end at once."""
    workdir, workers = tmp_path / "run", {"data.workers": 2}
    process = runs.start(workdir, STEPS, cache, session=True, **workers)
    runs.wait_for_metrics(process, workdir, 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert 0 < runs.steps(workdir)[-1] <= STEPS
    ended = runs.train(workdir, STEPS, cache, **workers)
    assert ended.returncode == 0, ended.stderr
    assert runs.metrics(workdir) == runs.metrics(alone)


def damage_file(path):
    """Change some bytes in the middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - x for x in content[middle : middle + 8])
    path.write_bytes(content)


def largest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


DAMAGES = {
    "changed": lambda step: damage_file(largest_file(step / "params" / "d")),
    "changed_moments": lambda step: damage_file(largest_file(step / "optimizer")),
    "cut_off": lambda step: os.truncate(largest_file(step / "exported" / "d"), 100),
    "gone": lambda step: shutil.rmtree(step / "optimizer"),
    "no_record": lambda step: (step / "run" / "metadata").write_text("{"),
}


@pytest.mark.parametrize(
    "damage",
    ["no_record"]
    + [
        pytest.param(name, marks=pytest.mark.full)
        for name in ("changed", "changed_moments", "cut_off", "gone")
    ],
)
def test_damaged_checkpoint_is_replaced_by_the_one_before(
    damage, alone, cache, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    newest = runs.steps(workdir)[-1]
    DAMAGES[damage](workdir / "checkpoints" / str(newest))
    ended = finish(workdir, cache, alone)
    before = f"resuming at step {runs.steps(alone)[-2]}"
    assert f"checkpoint {newest}" in ended.stderr and before in ended.stderr
    assert "Traceback" not in ended.stderr
    (kept,) = (workdir / "checkpoints").glob("*damaged*")
    assert kept.name.startswith(f"{newest}.damaged-")


def check_workdir(alone, folder, cache):
    """With any damaged file, the run resumes or fails with an error message."""
    resumed, refused = 0, 0
    workdir = folder / "run"
    shutil.copytree(alone, folder / "intact")
    for step in (alone / "checkpoints").iterdir():  # see test_training_checkpoint.py
        shutil.rmtree(folder / "intact" / "checkpoints" / step.name)
    for name, damage, _ in damaged_copies(folder / "intact", workdir):
        shutil.copytree(
            alone / "checkpoints", workdir / "checkpoints", dirs_exist_ok=True
        )
        ended = runs.train(workdir, STEPS + 1, cache)
        assert "Traceback" not in ended.stderr, (name, damage)
        if ended.returncode == 0:
            assert runs.steps(workdir)[-1] == STEPS + 1
            resumed += 1
        else:
            last = ended.stderr.splitlines()[-1]
            assert last.startswith("error: ") and str(workdir) in last, (name, damage)
            refused += 1
    return resumed, refused


@pytest.mark.full
def test_every_damage_of_every_file_of_a_workdir(alone, cache, tmp_path):
    resumed, refused = check_workdir(alone, tmp_path, cache)
    assert resumed > 80 and refused < 8


@pytest.mark.full
def test_full_disk_ends_the_run_and_loses_nothing(cache, tmp_path):
    """A limit on file sizes simulates it: checkpoints have the largest files."""
    workdir, wide = tmp_path / "run", {"networks.channel_base": 1024}
    wide["networks.channel_max"] = 128
    assert runs.train(workdir, 4, cache, **wide).returncode == 0
    limited = subprocess.run(
        [  # kilobytes per file
            *("bash", "-c", 'ulimit -f 480; exec "$@"', "-"),
            *runs.command(workdir, STEPS, **wide),
        ],
        env=runs.environment(cache),
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1
    assert "Traceback" not in limited.stderr
    (message,) = (x for x in limited.stderr.splitlines() if x.startswith("error: "))
    assert str(workdir / "checkpoints") in message
    assert "File too large" in message and "step 4" in message
    assert runs.steps(workdir) == [4]
    ended = runs.train(workdir, 5, cache, **wide)
    assert ended.returncode == 0 and "resuming at step 4" in ended.stderr


@pytest.mark.full
def test_two_runs_do_not_share_a_workdir(cache, tmp_path):
    workdir = tmp_path / "run"
    process = runs.start(workdir, 10_000, cache)
    runs.wait_for_metrics(process, workdir, 1)
    other = runs.train(workdir, STEPS, cache)
    process.kill()
    process.communicate()
    assert other.returncode == 1
    assert other.stderr.startswith(f"error: {workdir} ")
    assert other.stderr.count("\n") == 1
