"""`prepare --runner=beam`, on Beam's DirectRunner with two workers."""

import os
import subprocess
import sys

import pytest
from test_data_shards import hash_files
from test_data_shards import prepare as prepare_here
from test_prepare_shares import SMALL, inodes
from verbs import assert_error_line, run_here

from migan_jax import prepare
from migan_jax.data.rejects import Rejects
from migan_jax.data.shards import ShardWriter
from migan_jax.data.sources import FileSource

WORKERS = (
    "--runner=DirectRunner --direct_num_workers=2 "
    "--direct_running_mode=multi_processing"
)
# The verb with small shards. Beam's workers are other processes, too.
PREPARE = f"""
import functools
from migan_jax.config import run_verb
from migan_jax.data import shards
from migan_jax.prepare import main

shards.ShardOptions = functools.partial(
    shards.ShardOptions, shard_bytes={SMALL.shard_bytes}
)
run_verb(main)
"""


def run_beam(*arguments, options=WORKERS):
    pytest.importorskip("apache_beam")
    flags = "--smallest-side=16", "--runner=beam", f"--beam-options={options}"
    return subprocess.run(
        [sys.executable, "-c", PREPARE, *map(str, arguments), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_resumed_on_beam(photos, masks, tmp_path):
    """Beam writes only what is missing, and the files are those of one process."""
    (photos / "01.png").write_bytes(b"x")
    source, output = FileSource(photos, masks), tmp_path / "out"
    writer = ShardWriter(source, output, SMALL, share=(1, 3))
    writer.run(Rejects(source, 0.5, None), 1, lambda count: None)
    before = inodes(output)
    done = run_beam(photos, output, f"--own-masks={masks}")
    assert done.returncode == 0, done.stderr
    assert before and before.items() <= inodes(output).items()
    prepare_here(source, tmp_path / "one", SMALL)
    assert hash_files(output) == hash_files(tmp_path / "one")


def test_failures_are_errors(photos, tmp_path):
    output = tmp_path / "out"
    for wrong in ("--runner=Nowhere", "--direct_num_workers=x"):
        done = run_beam(photos, output, options=wrong)
        assert done.returncode == 1 and not output.exists()
        assert_error_line(done.stderr.splitlines()[-1], "--beam-options")


def test_missing_beam(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    output = tmp_path / "out"
    message = run_here(monkeypatch, prepare, photos, output, "--runner=beam")
    assert_error_line(message, "apache-beam", "the extra beam")
    assert not output.exists()
