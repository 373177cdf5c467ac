"""Sets of masks that belong to no image: bins, variation, order, and errors."""

import pickle
import types

import jax
import numpy as np
import pytest
from photo_folders import make_zip, mask_folder, photo_folder, rows_of_process, save
from pictures import picture
from test_plan import TINY

from migan_jax.config import base_config, load_config, smoke
from migan_jax.data.mask_samplers import mask_on_host
from migan_jax.data.pipeline import make_loader
from migan_jax.data.sources import FileSource, SceneSource
from migan_jax.data.splits import check_settings, load_held_out, open_splits
from migan_jax.data.unpaired_masks import (
    UnpairedMasks,
    UnpairedMaskSource,
    _fit,
    _vary,
)
from migan_jax.errors import UserError
from migan_jax.training.programs import plan_programs
from migan_jax.training.stages import Stages

SIZE = 64


def disc(ratio, size=100):
    """A disc in the centre: rotations do not change its hole ratio."""
    x, y = np.indices((size, size)) - (size - 1) / 2
    return x**2 + y**2 < ratio * size**2 / np.pi


def write_set(folder, *ratios):
    for ratio in ratios:
        save(folder, f"{ratio:.3f}.png", np.uint8(255 * disc(ratio)))
    return folder


@pytest.fixture
def discs(tmp_path):
    """Make a set with two masks in each bin but that of 20 to 30 %."""
    ratios = [tenth / 10 + more for tenth in (0, 1, 3, 4, 5) for more in (0.03, 0.06)]
    return write_set(tmp_path / "discs", *ratios)


def make_config(source, masks, **data):
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4, "seed": 3})
    config.data.update({"source": str(source), "masks": masks and str(masks)})
    config.data.update({"mask_pairing": "random", **data})
    return config


def draw(masks, count, size=SIZE):
    rng = np.random.default_rng(0)
    return np.stack([masks.hole_on_host(rng, size) for _ in range(count)])


def test_bins_are_drawn_uniformly_and_kept(discs):
    count = 600
    holes = draw(UnpairedMasks(discs, "white", SIZE), count)
    ratios = holes.mean(axis=(1, 2))
    found = np.bincount((10 * ratios).astype(int), minlength=10)
    assert found[2] == 0 == found[6:].sum()
    expected = count / 5
    assert abs(found[[0, 1, 3, 4, 5]] - expected).max() < 4 * np.sqrt(expected * 0.8)
    assert len({hole.tobytes() for hole in holes}) > count / 3  # most dilations


def test_large_and_empty_holes_are_not_used(tmp_path, caplog):
    folder = write_set(tmp_path / "set", 0.25, 0.59, 0.65)
    save(folder, "empty.png", np.zeros((9, 9), np.uint8))
    masks = UnpairedMasks(folder, "white", SIZE)
    assert f"2 of 4 masks in {folder}" in caplog.text and "60 %" in caplog.text
    assert "mask_hole" not in caplog.text
    ratios = draw(masks, 50).mean(axis=(1, 2))
    assert set((10 * ratios).astype(int)) == {2, 5}
    save(folder, "full.png", np.full((9, 9), 255, np.uint8))
    UnpairedMasks(folder, "white", SIZE)
    assert "mask_hole=black" in caplog.text  # most are not used


def test_a_drawn_hole_is_rotated_and_dilated():
    """A bar points in all directions, and has several widths; its middle stays."""
    bar = np.zeros((80, 80), np.bool_)
    bar[38:42, 10:70] = True
    rng, angles, areas = np.random.default_rng(0), [], {0: [], 4: []}
    for dilation, found in areas.items():
        for _ in range(200):
            hole = _vary(bar, rng, SIZE, dilation)
            y, x = np.nonzero(hole)
            assert abs(x.min() + x.max() - 63) <= 1 >= abs(y.min() + y.max() - 63)
            angles.append(np.arctan2(*np.linalg.eigh(np.cov(x, y))[1][:, 1]) % np.pi)
            found.append(hole.mean())
    counts, _ = np.histogram(angles, 8, (0, np.pi))
    assert abs(counts - 50).max() < 4 * np.sqrt(50)
    # Enlarged by up to the square root of 2, in both directions.
    assert 0.9 * bar.mean() < min(areas[0]) and max(areas[0]) < 2.7 * bar.mean()
    assert np.std(areas[4]) > 2 * np.std(areas[0]) < np.mean(areas[4]) / 2


def test_half_of_the_holes_are_flipped():
    """Of a spiral with three arms, mirrored ones turn the other way."""
    y, x = np.indices((96, 96)) - 47.5
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    spiral = (np.sin(3 * angle + radius / 5) > 0) & (radius < 33)
    rng, same = np.random.default_rng(0), 0
    ring = (radius > 10) & (radius < 30)
    for _ in range(200):
        hole = _vary(spiral, rng, 96, 0)
        # Without enlarging, as far as the arms' turning is concerned.
        waves = [
            abs((hole * ring * np.exp(1j * (3 * angle + turn * radius / 7))).sum())
            for turn in (1, -1)
        ]
        same += waves[0] > waves[1]
    assert 70 < same < 130


def test_pixels_that_a_hole_touches_are_hole_in_any_shape():
    hole = np.zeros((30, 90), np.bool_)
    hole[20, 61] = True
    fitted = _fit(hole, 10)
    assert fitted[6, 6] and fitted.sum() == 1
    assert _fit(hole[:, :30], 60).sum() == 0 != _fit(hole, 60).sum()


def test_a_lower_resolution_ends(tmp_path):
    """There every pixel touches a hole of these masks, in networks that grow."""
    noise = np.random.default_rng(0).random((128, 128)) < 0.5
    save(tmp_path / "set", "noise.png", np.uint8(255 * noise))
    masks = UnpairedMasks(tmp_path / "set", "white", 128)
    mask = mask_on_host(masks, np.random.default_rng(0), 8)
    assert 0.2 < mask.mean() < 0.8


# In batches.


def test_any_process_and_step_gives_the_same_masks(photos, discs):
    config = make_config(photos, discs)
    loader = make_loader(config, open_splits(config)[0])
    whole = [loader(step) for step in range(6)]
    masks = np.concatenate([batch["mask"] for batch in whole])
    assert masks.shape == (24, 16, 16, 1) and set(np.unique(masks)) == {0, 1}
    assert len({mask.tobytes() for mask in masks}) > 12  # though of eleven pictures
    source, _ = open_splits(config)
    for step in (4, 1):  # as when a run resumes
        parts = [
            pickle.loads(pickle.dumps(make_loader(config, source, rows)))(step)
            for rows in (rows_of_process(4, process, 2) for process in range(2))
        ]
        for name, array in whole[step].items():
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, array)
    config.seed = 4
    assert not np.array_equal(make_loader(config, source)(1)["mask"], whole[1]["mask"])


def test_masks_do_not_depend_on_the_images(photos, discs, tmp_path):
    """Zips, other images and scenes have the same ones."""
    archive = make_zip(discs, tmp_path / "discs.zip")
    others = photo_folder(tmp_path / "others", 30)
    batches = []
    for source, masks in ((photos, discs), (others, archive), ("scenes", discs)):
        config = make_config(source, masks)
        batches.append(make_loader(config, open_splits(config)[0])(2)["mask"])
    np.testing.assert_array_equal(batches[0], batches[1])
    np.testing.assert_array_equal(batches[0], batches[2])


@pytest.mark.parametrize("separate", [False, True])
def test_held_out_images_have_fixed_masks(separate, photos, discs, tmp_path):
    more = {"validation": str(photo_folder(tmp_path / "others", 9))} if separate else {}
    config = make_config(photos, discs, **more)
    held = [load_held_out(open_splits(config)[1], config) for _ in range(2)]
    np.testing.assert_array_equal(held[0].masks, held[1].masks)
    holes = 1 - held[0].masks.mean(axis=(1, 2, 3))
    assert len(holes) == (8 if separate else 1) and 0 < holes.min() <= holes.max() < 0.6


def test_programs_take_the_masks(discs):
    """Else they would draw masks of the kind `data.mask_kind`."""
    settings = *TINY, "data.source=scenes", "data.held_out=0", "teacher=none"
    config = load_config("places256", settings, False)
    config.data.update({"masks": str(discs), "mask_pairing": "random"})
    planned, timeline, _ = plan_programs(config, jax.devices()[:1])
    setup = types.SimpleNamespace(**vars(planned), source=open_splits(config)[0])
    for programs in (planned, Stages(setup).programs):
        assert programs.batch(timeline.at(0)).keys() == {"image", "mask"}
    assert config.data.draw_masks_on == "device"


def test_a_set_is_part_of_the_fingerprint(photos, discs, tmp_path):
    def digest(folder, mask_hole="white"):
        masks = UnpairedMasks(folder, mask_hole, SIZE)
        return UnpairedMaskSource(FileSource(photos), masks).fingerprint.digest

    first = digest(discs)
    assert digest(discs.rename(tmp_path / "moved")) == first
    others = [FileSource(photos).fingerprint.digest]
    others.append(digest(tmp_path / "moved", "black"))
    save(tmp_path / "moved", "0.030.png", np.uint8(255 * disc(0.02)))
    others.append(digest(tmp_path / "moved"))
    assert len({first, *others}) == 4


# Errors.


def refused(config):
    with pytest.raises(UserError) as caught:
        open_splits(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_invalid_settings(photos, discs):
    message = refused(make_config(photos, discs, mask_pairing="pairs"))
    assert "data.mask_pairing is 'pairs'" in message and "names, random" in message
    assert "data.masks" in refused(make_config(photos, None))
    assert "mask_hole" in refused(make_config(photos, discs, mask_hole="grey"))
    assert "gs://a/b" in refused(make_config(photos, "gs://a/b"))
    assert "nowhere" in refused(make_config(photos, "nowhere"))
    config = make_config(photos, discs)
    smoke(config)  # which has no masks
    check_settings(config)


def test_unusable_masks_are_one_error(photos, discs):
    (discs / "cut.png").write_bytes((discs / "0.030.png").read_bytes()[:60])
    save(discs, "photo.png", picture(40, 40))
    message = refused(make_config(photos, discs))
    assert f"2 of 12 masks in {discs}" in message and "cut.png" in message
    assert "remove or repair" in message


def test_masks_without_a_usable_hole(photos, tmp_path):
    folder = write_set(tmp_path / "set", 0.03)
    message = refused(make_config(photos, folder, mask_hole="black"))
    assert f"None of the 1 masks in {folder}" in message
    assert "mask_hole=white" in message


def test_masks_must_not_be_images(photos, discs):
    message = refused(make_config(photos, discs.rename(photos / "discs")))
    assert f"{photos / 'discs'} is inside {photos}" in message


def test_images_with_masks_of_their_own(photos, discs, tmp_path):
    source = FileSource(photos, mask_folder(tmp_path / "masks", photos))
    with pytest.raises(UserError, match=f"{photos} has a mask for each image"):
        UnpairedMaskSource(source, UnpairedMasks(discs, "white", SIZE))


def test_a_set_is_copied_to_derived_sources(discs):
    masks = UnpairedMasks(discs, "white", SIZE)
    source = UnpairedMaskSource(SceneSource(16, 0), masks)
    assert source.unpaired_masks is masks and not source.has_masks
    assert np.array_equal(source[3].image, SceneSource(16, 0)[3].image)
    assert source.name(3) == "scenes 3" and len(source) == len(SceneSource(16, 0))
