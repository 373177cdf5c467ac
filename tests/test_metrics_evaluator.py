"""Figures do not depend on how pictures are batched, sharded, or interrupted."""

import itertools
import json

import jax
import numpy as np
import pytest
from photo_folders import mask_folder, photo_folder
from PIL import Image, ImageOps

from migan_jax.data.mask_sets import MaskSet, write_mask_set
from migan_jax.data.sources import open_source
from migan_jax.errors import UserError
from migan_jax.metrics import evaluator
from migan_jax.metrics.evaluator import Evaluation, Eyes, Method
from migan_jax.metrics.fills import classical_fills, mean_colour, network_fill
from migan_jax.metrics.frechet import Moments, fid
from migan_jax.metrics.protocol import protocol_of
from migan_jax.metrics.table import BINS, Table, with_interval
from migan_jax.metrics.test_set import TestSet

SIZE = 32
NO_EYES = Eyes()


def pictures_of(photos, masks=None, masks_of=None):
    source = open_source(
        str(photos),
        masks=masks and str(masks),
        mask_hole="white",
        resolution=SIZE,
        seed=0,
    )
    return TestSet(source, resolution=SIZE, masks=masks_of)


def measured(test_set, folder, batch_size=8, fill=mean_colour, name="b", eyes=NO_EYES):
    folder.mkdir(exist_ok=True)
    method = Method(fill, {"a": name})
    evaluation = Evaluation(test_set, eyes, folder)
    evaluation.work_off([method], batch_size)
    return evaluation.table(method)


def assert_same(ours, theirs, rtol=1e-12):
    assert ours.names == theirs.names
    np.testing.assert_array_equal(ours.ratios, theirs.ratios)
    assert ours.figures.keys() == theirs.figures.keys()
    for name, values in theirs.figures.items():
        np.testing.assert_allclose(ours.figures[name], values, rtol=rtol, err_msg=name)


def random_table(count, seed=0):
    rng = np.random.default_rng(seed)
    return Table(
        tuple(f"{number}.png" for number in range(count)),
        rng.random(count),
        {"hole_psnr": rng.normal(20, 3, count), "l1": rng.random(count)},
        rng.normal(size=(count, 6)).astype(np.float32),
        rng.normal(0.1, size=(count, 6)).astype(np.float32),
    )


def part_of(table, rows):
    figures = {name: values[rows] for name, values in table.figures.items()}
    names = table.names[rows]
    rest = table.ratios[rows], figures, table.real[rows], table.fake[rows]
    return Table(names, *rest)


def test_seven_uneven_shards_are_one():
    pytest.importorskip("sklearn")
    whole = random_table(90)
    ends = [0, 1, 7, 8, 30, 31, 80, 90]
    merged = Table.empty(("hole_psnr", "l1"), 6)
    for start, end in itertools.pairwise(ends):
        merged = merged.merge(part_of(whole, slice(start, end)))
    assert merged.compute() == whole.compute()
    assert merged.by_hole_ratio() == whole.by_hole_ratio()
    assert set(whole.compute()) == {
        *("hole_psnr", "l1", "fid_90", "kid", "p_ids_90", "u_ids_90")
    }


@pytest.mark.parametrize("batch_size", [5, 8, 16])
def test_the_last_batch_is_counted_once(batch_size, photos, tmp_path):
    """Twelve pictures, which are no whole number of batches."""
    test_set = pictures_of(photos)
    table, digest = measured(test_set, tmp_path / "a", batch_size)
    assert len(table.names) == len(set(table.names)) == 12
    again, same = measured(test_set, tmp_path / "b", batch_size=8)
    assert_same(table, again)
    assert digest == same


def test_one_device_is_eight(photos, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3)).astype(np.float32)

    def complete(image, known):
        assert len(evaluator.spread(image).devices()) == jax.local_device_count()
        x = jax.numpy.concatenate([known - 0.5, image], axis=-1)
        return jax.numpy.tanh(evaluator.spread(x) @ weights)

    test_set, fill = pictures_of(photos), network_fill(complete)
    on_eight, _ = measured(test_set, tmp_path / "eight", fill=fill)
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    on_one, _ = measured(test_set, tmp_path / "one", fill=fill)
    assert_same(on_one, on_eight, rtol=1e-6)


def test_an_interruption_costs_a_chunk(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "CHUNK", 4)
    test_set, calls = pictures_of(photos), []

    def interrupted(truths, holes):
        calls.append(len(truths))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mean_colour(truths, holes)

    with pytest.raises(KeyboardInterrupt):
        measured(test_set, tmp_path / "a", fill=interrupted)
    table, digest = measured(test_set, tmp_path / "a", fill=interrupted)
    assert len(calls) == 4
    whole, same = measured(test_set, tmp_path / "b")
    assert_same(table, whole)
    assert digest == same


def test_chunks_of_something_else_are_not_used(photos, tmp_path):
    test_set = pictures_of(photos)
    table, _ = measured(test_set, tmp_path)
    other, _ = measured(test_set, tmp_path, fill=lambda t, h: t, name="another")
    assert (other.figures["hole_l1"] == 0).all()
    assert (table.figures["hole_l1"] > 0).all()


def test_what_one_method_has_is_not_done_again_for_another(photos, tmp_path):
    """Nor the same method by two names."""
    test_set, done, calls = pictures_of(photos), [], []
    alone, _ = measured(test_set, tmp_path)

    def other(truths, holes):
        calls.append(len(truths))
        return truths

    methods = [Method(f, {"a": n}) for f, n in ((None, "b"), (other, "c"), (None, "c"))]
    evaluation = Evaluation(test_set, NO_EYES, tmp_path)
    evaluation.work_off(methods, 8, done.append)
    assert calls == [8, 8] and sum(done) == 36
    assert_same(evaluation.table(methods[0])[0], alone)
    assert (evaluation.table(methods[2])[0].figures["hole_l1"] == 0).all()


def test_another_set_of_the_same_seed_is_not_taken_for_it(photos, tmp_path):
    """As after a change of what is drawn."""
    sets = []
    for index, kind in enumerate(("box", "brush")):
        folder = tmp_path / f"set{index}"
        write_mask_set(folder, kind=kind, count=12, resolution=SIZE, seed=0)
        masks = MaskSet(folder)
        masks.settings["kind"] = "box"
        test_set = pictures_of(photos, masks_of=masks)
        sets.append((measured(test_set, tmp_path / "chunks")[1], masks.digest))
    assert sets[0][0] == sets[0][1] != sets[1][0] == sets[1][1]


def damaged(content, rng):
    """Something else, or the content with a bit flipped, with zeros, or cut off."""
    at, flipped = int(rng.integers(len(content))), bytearray(content)
    flipped[at] ^= 1 << int(rng.integers(8))
    page = content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]
    ends = content[:at], content[:at] + bytes(len(content) - at)
    return b"", b"[1]", bytes(len(content)), bytes(flipped), page, *ends


def test_a_damaged_chunk_is_done_again(photos, tmp_path, caplog):
    test_set = pictures_of(photos)
    table, _ = measured(test_set, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for damage in (d for _ in range(300) for d in damaged(content, rng)):
        path.write_bytes(damage)
        caplog.clear()
        assert (evaluator._read(path) is None) == (damage != content)
        assert len(caplog.records) == (damage != content)
    again, _ = measured(test_set, tmp_path)
    assert "is damaged and done again" in caplog.text
    assert_same(again, table)


def test_a_folder_in_place_of_a_chunk(photos, tmp_path):
    """It may be anyone's, so it stays."""
    test_set = pictures_of(photos)
    measured(test_set, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.unlink()
    (path / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{path} cannot be written: Is a directory"):
        measured(test_set, tmp_path)
    assert (path / "sub").is_dir()


def test_the_picture_of_which_nan_is_made(photos, tmp_path, monkeypatch):
    """It is named, with the method; its chunk is not saved, and those before it are."""
    monkeypatch.setattr(evaluator, "CHUNK", 5)
    test_set, batches = pictures_of(photos), []

    def complete(image, known):
        batches.append(len(image))
        rgb = 0 * image
        if len(batches) == 4:  # of the second chunk, the pictures 8 and 9 and a repeat
            rgb[1, 0, 0, 2] = np.inf
        return rgb

    method = Method(network_fill(complete), {"a": "b"}, name="runs/a")
    with pytest.raises(UserError) as caught:
        Evaluation(test_set, NO_EYES, tmp_path).work_off([method], batch_size=3)
    assert f"runs/a makes NaN or infinity of {test_set[9].name}:" in str(caught.value)
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_fills_do_not_look_into_holes(photos):
    test_set = pictures_of(photos)
    pairs = test_set.batch(range(12))
    truths = np.stack([pair.truth for pair in pairs])
    holes = np.stack([pair.hole for pair in pairs])
    holes[0] = True  # nothing is known
    other = np.where(holes[..., None], 255 - truths, truths)
    fills = {
        **classical_fills(),
        "network": network_fill(lambda image, known: np.tanh(image + known)),
    }
    assert "mean colour" in fills
    for name, fill in fills.items():
        results = fill(truths, holes), fill(other, holes)
        np.testing.assert_array_equal(*results, err_msg=name)
        np.testing.assert_array_equal(results[0][~holes], truths[~holes])


def test_a_network_that_makes_up_nan(photos):
    truth, hole = pictures_of(photos)[0][1:]
    with pytest.raises(UserError, match="NaN or infinity"):
        network_fill(lambda image, known: image * np.nan)(truth[None], hole[None])


def test_known_pixels_are_the_pictures(photos):
    test_set = pictures_of(photos)
    pairs = test_set.batch(range(12))
    truths = np.stack([pair.truth for pair in pairs])
    holes = np.stack([pair.hole for pair in pairs])
    for fill in (mean_colour, network_fill(lambda image, known: image * 0 + 7)):
        results = fill(truths, holes)
        np.testing.assert_array_equal(results[~holes], truths[~holes])
        assert results.dtype == np.uint8
    assert (results[holes] == 255).all()


def test_one_other_mask_is_another_protocol(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    masks = mask_folder(tmp_path / "masks", photos)
    hashes = []
    for changed in (False, False, True):
        if changed:
            path = min(masks.iterdir())
            with Image.open(path) as mask:
                other = ImageOps.mirror(mask.convert("L"))
            other.save(path)
        test_set = pictures_of(photos, masks)
        _, digest = measured(test_set, tmp_path / f"{len(hashes)}")
        hashes.append(protocol_of(test_set, Eyes(), digest)["hash"])
    assert hashes[0] == hashes[1] != hashes[2]
    drawn = pictures_of(photos)
    _, digest = measured(drawn, tmp_path / "drawn")
    assert protocol_of(drawn, Eyes(), digest)["hash"] not in hashes
    json.dumps(protocol_of(drawn, Eyes(), digest))


def test_drawn_masks_are_those_of_prepare(photos, tmp_path):
    kind = {"kind": "free_form", "count": 12, "resolution": SIZE, "seed": 0}
    write_mask_set(tmp_path / "set", **kind)
    written = MaskSet(tmp_path / "set")
    sets = pictures_of(photos), pictures_of(photos, masks_of=written)
    for index, test_set in enumerate(sets):
        for number in range(12):
            np.testing.assert_array_equal(test_set[number].hole, written[number] == 0)
        assert measured(test_set, tmp_path / f"{index}")[1] == written.digest
    protocols = [protocol_of(one, Eyes(), written.digest) for one in sets]
    assert protocols[0] == protocols[1]


def test_a_set_that_does_not_fit(photos, tmp_path):
    kind = {"kind": "box", "count": 11, "seed": 0}
    write_mask_set(tmp_path / "few", **kind, resolution=SIZE)
    with pytest.raises(UserError, match="11 masks for 12 pictures"):
        pictures_of(photos, masks_of=MaskSet(tmp_path / "few"))
    write_mask_set(tmp_path / "small", **kind, resolution=16)
    with pytest.raises(UserError, match="masks of 16 pixels, not 32"):
        pictures_of(photos, masks_of=MaskSet(tmp_path / "small"))


def test_a_picture_that_cannot_be_used_is_named(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        measured(pictures_of(photos), tmp_path)


def test_bins_are_of_the_holes_share():
    table = random_table(50)
    rows = table.by_hole_ratio()
    assert sum(row["pictures"] for row in rows) == 50
    for row in rows:
        inside = (table.ratios >= row["from"]) & (table.ratios < row["to"])
        expected = table.figures["hole_psnr"][inside].mean()
        assert row["hole_psnr"] == pytest.approx(expected)
        real, fake = (
            Moments.empty(6).update(part[inside]) for part in (table.real, table.fake)
        )
        assert row["fid"] == pytest.approx(fid(real, fake))
    edges = np.array(BINS)
    nothing = np.zeros((len(edges), 0), np.float32)
    names = tuple(map(str, edges))
    on_edges = Table(names, edges, {"l1": edges}, nothing, nothing).by_hole_ratio()
    assert [row["pictures"] for row in on_edges] == [1, 1, 1, 1, 2]
    assert [row["from"] for row in on_edges] == list(BINS[:-1])


def test_an_interval_is_that_of_the_mean():
    """Of a normal distribution it is 1.96 standard errors on either side."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = with_interval(lambda rows: values[rows].mean(), len(values))
    error = values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_pictures_without_a_figure_do_not_count():
    table = random_table(10)
    table.figures["hole_psnr"][3:] = np.nan
    found = table.compute()["hole_psnr"]
    assert found["value"] == pytest.approx(table.figures["hole_psnr"][:3].mean())
    assert found["low"] <= found["value"] <= found["high"]
    numbers = table.extremes(2)
    assert set(numbers["best"]) | set(numbers["worst"]) == {0, 1, 2}
