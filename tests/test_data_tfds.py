"""TFDS: datasets prepared as ArrayRecord, read without TensorFlow."""

import pickle
import shutil
import sys

import numpy as np
import pytest
from docs_scripts import docs_script
from photo_folders import open_error, open_small, save
from pictures import picture

from migan_jax.data.sources import FileSource
from migan_jax.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Prepare a TFDS dataset of seven images without TensorFlow."""
    folder = tmp_path_factory.mktemp("tfds")
    for index in range(7):
        save(folder / "in", f"{index}.png", picture(20, 30, seed=index))
    write = docs_script("contact_sheets").write_tfds
    path = write(FileSource(folder / "in"), folder / "out")
    assert "tensorflow" not in sys.modules
    return path


def test_tfds(tiny):
    source = open_small(f"tfds:{tiny}")
    assert len(source) == 7 and "tensorflow" not in sys.modules
    expected = {picture(20, 30, seed=index).tobytes() for index in range(7)}
    assert {source[index].image.tobytes() for index in range(7)} == expected
    assert source.name(3) == "tfds:pictures/1.0.0[train] record 3"
    start = open_small(f"tfds:{tiny}[train[:3]]")
    assert len(start) == 3
    assert np.array_equal(start[1].image, source[1].image)
    assert start.fingerprint.change_since(source.fingerprint)
    assert np.array_equal(pickle.loads(pickle.dumps(source))[1].image, source[1].image)


@pytest.mark.parametrize(
    "dataset, part",
    [
        ("no_such_dataset", "no_such_dataset"),
        ("mnist", "tfds build mnist --file_format=array_record"),
        ("../mnist", "../mnist"),
    ],
)
def test_missing_tfds_datasets(dataset, part):
    assert part in open_error(f"tfds:{dataset}")


def test_damaged_record(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "pictures" / "1.0.0")
    (shard,) = copy.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[content.index(b"\x89PNG") + 100] ^= 1
    shard.write_bytes(content)
    source, readable = open_small(f"tfds:{copy}"), 0
    for index in range(7):
        try:
            readable += source[index].image.shape == (20, 30, 3)
        except UserError as error:
            assert f"record {index}" in str(error)
    assert readable < 7


def test_missing_split(tiny):
    assert "'test'" in open_error(f"tfds:{tiny}[test]")
