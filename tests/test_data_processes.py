"""Batches are the same with any number of processes and workers, killed or not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from load_batches import hash_rows
from photo_folders import mask_folder, photo_folder, rows_of_process, small_loader

from migan_jax.data.pipeline import Batches
from migan_jax.data.rejects import Rejects

SCRIPT = Path(__file__).with_name("load_batches.py")
STEPS = 9  # three epochs of twelve pictures
ENDLESS = 1 << 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write photos, two of them damaged, and masks."""
    root = tmp_path_factory.mktemp("data")
    photos = photo_folder(root / "photos")
    masks = mask_folder(root / "masks", photos)
    for name in ("04.png", "sub/09.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:200])
    return photos, masks


@pytest.fixture(scope="module")
def expected(folders):
    """Hash all rows of all batches, loaded here without workers."""
    rows = hash_rows(*folders, 0, 1, 0, STEPS, 0)
    return {(step, row): digest for step, row, digest in rows}


def start(
    folders, process=0, processes=1, first_step=0, steps=STEPS, workers=0, **options
):
    arguments = *folders, process, processes, first_step, steps, workers
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_rows(*processes):
    """Wait for processes; return the hashes they printed, by step and row."""
    lines = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        lines += output.splitlines()
    return parse_rows(lines)


def parse_rows(lines):
    fields = [line.split() for line in lines]
    return {(int(step), int(row)): digest for step, row, digest in fields}


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_processes_load_disjoint_rows_of_the_same_batches(count, folders, expected):
    assert len(expected) == 4 * STEPS == len(set(expected.values()))
    assert wait_for_rows(*(start(folders, i, count) for i in range(count))) == expected


@pytest.mark.full
def test_workers_of_several_processes_change_nothing(folders, expected):
    halves = start(folders, 0, 2, workers=1), start(folders, 1, 2, workers=3)
    assert wait_for_rows(*halves) == expected


def test_any_step_can_be_the_first(folders, expected):
    photos, masks = folders
    for first_step in range(STEPS):
        found = {}
        for process in range(2):
            loader = small_loader(photos, rows_of_process(4, process, 2), masks)
            rejects = Rejects(loader.source, 0.5, None)
            with Batches(loader, rejects, first_step=first_step) as batches:
                found[process] = next(batches)
        whole = small_loader(photos, masks=masks)(first_step)
        for name in ("image", "mask"):
            rows = [*found[0][name], *found[1][name]]
            assert (rows == whole[name]).all()


@pytest.mark.full  # the slow tests kill a trainer
@pytest.mark.parametrize("records", range(1, 4 * STEPS, 5))
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_record_and_resumed_by_other_processes(
    workers, records, folders, expected
):
    killed = start(folders, steps=ENDLESS, workers=workers)
    printed = [killed.stdout.readline() for _ in range(records)]
    children = children_of(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = parse_rows(printed)
    assert before == {key: expected[key] for key in before}
    step = records // 4  # the first incomplete one
    rest = STEPS - step
    after = wait_for_rows(*(start(folders, i, 2, step, rest) for i in range(2)))
    assert before | after == expected
    assert len(children) >= workers
    assert_gone(children)


def test_workers_change_nothing_and_end_with_the_iteration(folders, expected):
    with start(folders, workers=2) as ended:
        lines = [ended.stdout.readline()]
        children = children_of(ended.pid)
        lines += ended.stdout.readlines()
    assert ended.returncode == 0 and parse_rows(lines) == expected
    assert len(children) >= 2
    assert_gone(children)


def test_interruption_prints_one_traceback(folders):
    """Ctrl-C reaches the workers too, which print nothing."""
    with start(
        folders,
        steps=ENDLESS,
        workers=2,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as interrupted:
        interrupted.stdout.readline()
        children = children_of(interrupted.pid)
        os.killpg(interrupted.pid, signal.SIGINT)
        errors = interrupted.communicate(timeout=300)[1]
    assert errors.count("Traceback") == 1 and errors.count("\nKeyboardInterrupt\n") == 1
    assert_gone(children)


def children_of(pid):
    """Return all descendants of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *children_of(child)]
    return found


def assert_gone(pids):
    end = time.monotonic() + 20
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
