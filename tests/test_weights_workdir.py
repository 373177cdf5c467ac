"""Workdirs that are damaged, unfinished, or not workdirs at all."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from damages import damaged_copies
from test_weights_names import NETWORKS, random_tensors
from variables import CODES, NARROW, assert_same_trees, random_variables

from migan_jax.errors import UserError
from migan_jax.families import from_tensors, load_checkpoint, save_checkpoint
from migan_jax.models import comodgan
from migan_jax.weights.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def sound_workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("workdirs") / "run"
    tensors = random_tensors(NETWORKS["comodgan_discriminator"])
    save_checkpoint(from_tensors(tensors), path, "training")
    return path


@pytest.fixture
def workdir(sound_workdir, tmp_path):
    shutil.copytree(sound_workdir, tmp_path / "run")
    return tmp_path / "run"


def refusal(path):
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_folders_that_are_not_workdirs(tmp_path):
    (tmp_path / "x.pt").mkdir()
    assert "checkpoints" in refusal(tmp_path / "x.pt")
    (tmp_path / "x.pt" / "checkpoints").write_text("")
    assert "checkpoints" in refusal(tmp_path / "x.pt")


def test_workdirs_without_a_finished_checkpoint(workdir):
    step = workdir / "checkpoints" / "0"
    step.rename(workdir / "checkpoints" / "0.orbax-checkpoint-tmp")
    before = sorted(workdir.rglob("*"))
    assert "finished" in refusal(workdir)
    assert sorted(workdir.rglob("*")) == before


def test_unfinished_steps_are_left_alone(workdir):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "0", checkpoints / "5.orbax-checkpoint-tmp")
    (checkpoints / "notes.txt").write_text("mine")
    load_checkpoint(workdir)
    assert sorted(os.listdir(checkpoints)) == [
        "0",
        "5.orbax-checkpoint-tmp",
        "notes.txt",
    ]


def test_the_newest_step_is_read(workdir):
    checkpoints = workdir / "checkpoints"
    for step in ("9", "10"):
        shutil.copytree(checkpoints / "0", checkpoints / step)
    shutil.rmtree(checkpoints / "9")
    (checkpoints / "9").mkdir()
    load_checkpoint(workdir)
    shutil.rmtree(checkpoints / "10" / "exported")
    assert "checkpoints/10" in refusal(workdir)


def test_a_step_by_its_folder(workdir):
    checkpoints = workdir / "checkpoints"
    for step in ("9", "10"):
        shutil.copytree(checkpoints / "0", checkpoints / step)
    shutil.rmtree(checkpoints / "10" / "exported")
    load_checkpoint(checkpoints / "9")
    refusal(checkpoints / "11")


@pytest.mark.parametrize("item", ["network", "exported"])
def test_missing_items(item, workdir):
    shutil.rmtree(workdir / "checkpoints" / "0" / item)
    assert item in refusal(workdir)


SOUND = {"family": "comodgan_discriminator", **NARROW}
DESCRIPTIONS = {
    "empty": "",
    "half": '{"discriminator": {"family": "comod',
    "list": "[]",
    "nothing": "{}",
    "no fields": json.dumps({"discriminator": {}}),
    "other role": json.dumps({"generator": SOUND}),
}
FIELDS = {
    "family": {"family": "unet"},
    "field": {"colour": 1},
    "text": {"resolution": "16"},
    "no power of two": {"resolution": 17},
    "negative": {"channel_max": -1},
    "other resolution": {"resolution": 32},
    "enormous": {"resolution": 2**40},
    "other family": {"family": "comodgan"},
}
DESCRIPTIONS |= {
    name: json.dumps({"discriminator": {**SOUND, **change}})
    for name, change in FIELDS.items()
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_damaged_descriptions(case, workdir):
    metadata = workdir / "checkpoints" / "0" / "network" / "metadata"
    assert json.loads(metadata.read_text()) == {"discriminator": SOUND}
    metadata.write_text(DESCRIPTIONS[case])
    assert "damaged" in refusal(workdir)


def test_workdirs_of_versions_with_one_network(tmp_path):
    """Its description and arrays were stored without a role."""
    network = comodgan.CoModGANGenerator(**NARROW, **CODES)
    variables = random_variables(network)
    own = {"family": "comodgan", **NARROW, **CODES}
    step = tmp_path / "run" / "checkpoints" / "5"
    items = ocp.args.Composite(
        network=ocp.args.JsonSave(own), exported=ocp.args.StandardSave(variables)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(step, args=items)
    assert_same_trees(
        load_checkpoint(tmp_path / "run"), Checkpoint(network, **variables)
    )


def test_damaged_arrays(workdir):
    metadata = workdir / "checkpoints" / "0" / "exported" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:100])
    assert "damaged" in refusal(workdir)


def check_damaged(sound, folder, every):
    """Check that each damage gives the same weights, or a UserError."""
    expected, sound_ones, refused = load_checkpoint(sound).digest, 0, 0
    for name, damage, path in damaged_copies(sound, folder, every):
        try:
            assert load_checkpoint(path).digest == expected, (name, damage)
            sound_ones += 1
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    return sound_ones, refused


def test_some_damages_of_files(sound_workdir, tmp_path):
    sound_ones, refused = check_damaged(sound_workdir, tmp_path / "run", every=7)
    assert sound_ones >= 2 and refused >= 5


@pytest.mark.full
def test_every_damage_of_every_file(sound_workdir, tmp_path):
    sound_ones, refused = check_damaged(sound_workdir, tmp_path / "run", every=1)
    assert sound_ones >= 16 and refused > 80


OTHER_WIDTHS = """
import sys
import migan_jax
from migan_jax.errors import UserError
try:
    migan_jax.load(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_arrays_of_other_shapes(workdir):
    """In its own process, since Orbax leaves threads behind when a read fails."""
    metadata = workdir / "checkpoints" / "0" / "network" / "metadata"
    metadata.write_text(json.dumps({**SOUND, "channel_max": 23}))
    command = [sys.executable, "-c", OTHER_WIDTHS, str(workdir)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert str(workdir / "checkpoints" / "0") in output and "shape" in output


def test_diverged_runs(tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["comodgan_discriminator"]))
    checkpoint.params["b4"]["fc"]["bias"] = np.full((24,), np.nan, np.float32)
    save_checkpoint(checkpoint, tmp_path / "run", "training")
    assert "NaN" in refusal(tmp_path / "run")
