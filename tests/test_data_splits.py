"""Training and validation splits: disjoint and reproducible."""

import numpy as np
import pytest
from photo_folders import mask_folder, photo_folder

from migan_jax.config import base_config
from migan_jax.data.sources import FileSource, SceneSource
from migan_jax.data.splits import hold_out, load_held_out, open_splits
from migan_jax.errors import UserError


def make_config(source, **data):
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4})
    config.data.update({"source": str(source), **data})
    return config


def names(source):
    return [source.name(index) for index in range(len(source))]


def test_splits_are_disjoint_and_complete():
    whole = SceneSource(16, 0)
    rest, held = hold_out(whole, 8, seed=1)
    assert (len(rest), len(held)) == (len(whole) - 8, 8)
    assert set(names(held)).isdisjoint(names(rest))
    again, other = (names(hold_out(whole, 8, seed)[1]) for seed in (1, 2))
    assert names(held) == again != other
    assert np.array_equal(rest[5].image, whole[int(rest.name(5).split()[-1])].image)


@pytest.mark.parametrize("count, held", [(12, 1), (30, 3), (2, 1), (1, 0)])
def test_few_images_are_held_out_of_a_small_source(count, held, tmp_path):
    photos = photo_folder(tmp_path / "photos", count)
    rest, samples = open_splits(make_config(photos))
    assert (len(rest), len(samples)) == (count - held, held)


def test_separate_validation_source(photos, tmp_path):
    validation = photo_folder(tmp_path / "validation", 20)
    rest, held = open_splits(make_config(photos, validation=str(validation)))
    assert names(rest) == names(FileSource(photos))
    assert names(held) == names(FileSource(validation))[:8]


@pytest.mark.parametrize("inside", [".", "val"])
def test_validation_source_must_not_overlap(inside, photos):
    if inside != ".":
        photo_folder(photos / inside, 3)
    with pytest.raises(UserError, match=r"data\.validation=.*data\.source"):
        open_splits(make_config(photos, validation=str(photos / inside)))


def test_held_out_crops_and_masks_are_fixed(photos, tmp_path):
    config = make_config(photos, held_out=0)
    assert load_held_out(open_splits(config)[1], config) is None
    others = photo_folder(tmp_path / "others", 9)
    config = make_config(photos, validation=str(others), crop_scale=0.2)
    _, held = open_splits(config)
    first, again = load_held_out(held, config), load_held_out(held, config)
    assert first.images.shape == (8, 16, 16, 3) and first.masks.shape == (8, 16, 16, 1)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.masks, again.masks)
    assert 0 < first.masks.mean() < 1 and set(np.unique(first.masks)) == {0, 1}
    assert not np.array_equal(first.masks[0], first.masks[1])


def test_held_out_images_keep_their_own_masks(photos, tmp_path):
    masks = mask_folder(tmp_path / "masks", photos)
    config = make_config(photos, masks=str(masks))
    held = load_held_out(open_splits(config)[1], config)
    assert held.masks[0, 8, 2, 0] == 0 and held.masks[0, 0, -1, 0] == 1


def test_unusable_held_out_images_are_skipped(photos, tmp_path, caplog):
    others = photo_folder(tmp_path / "others", 9)
    config = make_config(photos, validation=str(others))
    paths = sorted(others.rglob("*.png"))
    paths[0].write_bytes(b"no image")
    held = load_held_out(open_splits(config)[1], config)
    assert len(held) == 7 and paths[0].name in caplog.text
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"8 .*others.*data\.held_out"):
        load_held_out(open_splits(config)[1], config)
