"""Metrics do not depend on batching, sharding or interruptions."""

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
from migan_jax.metrics.evaluator import (
    Evaluation,
    FeatureNetworks,
    Method,
    make_protocol,
)
from migan_jax.metrics.fid import Moments, fid
from migan_jax.metrics.fills import classical_fills, mean_colour, network_fill
from migan_jax.metrics.table import (
    HOLE_RATIO_BINS,
    NARROW_HOLE_RATIO_BINS,
    Table,
    bootstrap_interval,
)
from migan_jax.metrics.test_set import TestSet

SIZE = 32
NO_NETWORKS = FeatureNetworks()


def open_test_set(photos, masks=None, mask_set=None):
    source = open_source(
        str(photos),
        masks=masks and str(masks),
        mask_hole="white",
        resolution=SIZE,
        seed=0,
    )
    return TestSet(source, resolution=SIZE, masks=mask_set)


def evaluate(
    test_set,
    folder,
    batch_size=8,
    fill=mean_colour,
    name="b",
    feature_networks=NO_NETWORKS,
):
    folder.mkdir(exist_ok=True)
    method = Method(fill, {"a": name})
    evaluation = Evaluation(test_set, feature_networks, folder)
    evaluation.run([method], batch_size)
    return evaluation.table(method)


def assert_same(ours, theirs, rtol=1e-12):
    assert ours.names == theirs.names
    np.testing.assert_array_equal(ours.ratios, theirs.ratios)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, values in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], values, rtol=rtol, err_msg=name)


def random_table(count, seed=0):
    rng = np.random.default_rng(seed)
    return Table(
        tuple(f"{index}.png" for index in range(count)),
        rng.random(count),
        {"hole_psnr": rng.normal(20, 3, count), "l1": rng.random(count)},
        rng.normal(size=(count, 6)).astype(np.float32),
        rng.normal(0.1, size=(count, 6)).astype(np.float32),
    )


def select(table, rows):
    metrics = {name: values[rows] for name, values in table.metrics.items()}
    names = table.names[rows]
    rest = table.ratios[rows], metrics, table.real[rows], table.fake[rows]
    return Table(names, *rest)


def test_concatenated_tables_equal_the_whole():
    pytest.importorskip("sklearn")
    whole = random_table(90)
    bounds = itertools.pairwise([0, 1, 7, 8, 30, 31, 80, 90])
    merged = Table.concatenate([select(whole, slice(*bound)) for bound in bounds])
    assert merged.compute() == whole.compute()
    assert merged.by_hole_ratio() == whole.by_hole_ratio()
    assert set(whole.compute()) == {
        *("hole_psnr", "l1", "fid_90", "kid", "p_ids_90", "u_ids_90")
    }


@pytest.mark.parametrize("batch_size", [5, 8, 16])
def test_padding_of_the_last_batch_is_not_counted(batch_size, photos, tmp_path):
    """Twelve images, which these batch sizes do not divide."""
    test_set = open_test_set(photos)
    table, digest = evaluate(test_set, tmp_path / "a", batch_size)
    assert len(table.names) == len(set(table.names)) == 12
    again, same = evaluate(test_set, tmp_path / "b", batch_size=8)
    assert_same(table, again)
    assert digest == same


def test_one_device_equals_eight(photos, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3)).astype(np.float32)

    def complete(image, known):
        assert (
            len(evaluator.shard_over_devices(image).devices())
            == jax.local_device_count()
        )
        x = jax.numpy.concatenate([known - 0.5, image], axis=-1)
        return jax.numpy.tanh(evaluator.shard_over_devices(x) @ weights)

    test_set, fill = open_test_set(photos), network_fill(complete)
    on_eight, _ = evaluate(test_set, tmp_path / "eight", fill=fill)
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    on_one, _ = evaluate(test_set, tmp_path / "one", fill=fill)
    assert_same(on_one, on_eight, rtol=1e-6)


def test_an_interrupted_evaluation_resumes_at_its_chunk(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "CHUNK_SIZE", 4)
    test_set, calls = open_test_set(photos), []

    def interrupted(truths, holes):
        calls.append(len(truths))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mean_colour(truths, holes)

    with pytest.raises(KeyboardInterrupt):
        evaluate(test_set, tmp_path / "a", fill=interrupted)
    table, digest = evaluate(test_set, tmp_path / "a", fill=interrupted)
    assert len(calls) == 4
    whole, same = evaluate(test_set, tmp_path / "b")
    assert_same(table, whole)
    assert digest == same


def test_chunks_of_another_method_are_not_used(photos, tmp_path):
    test_set = open_test_set(photos)
    table, _ = evaluate(test_set, tmp_path)
    other, _ = evaluate(test_set, tmp_path, fill=lambda t, h: t, name="another")
    assert (other.metrics["hole_l1"] == 0).all()
    assert (table.metrics["hole_l1"] > 0).all()


def test_only_new_methods_are_evaluated(photos, tmp_path):
    """And a method with two names is evaluated once."""
    test_set, done, calls = open_test_set(photos), [], []
    alone, _ = evaluate(test_set, tmp_path)

    def other(truths, holes):
        calls.append(len(truths))
        return truths

    methods = [Method(f, {"a": n}) for f, n in ((None, "b"), (other, "c"), (None, "c"))]
    evaluation = Evaluation(test_set, NO_NETWORKS, tmp_path)
    evaluation.run(methods, 8, done.append)
    assert calls == [8, 8] and sum(done) == 36
    assert_same(evaluation.table(methods[0])[0], alone)
    assert (evaluation.table(methods[2])[0].metrics["hole_l1"] == 0).all()


def test_mask_sets_with_equal_settings_are_told_apart(photos, tmp_path):
    """As after a change of the mask samplers."""
    sets = []
    for index, kind in enumerate(("box", "brush")):
        folder = tmp_path / f"set{index}"
        write_mask_set(folder, kind=kind, count=12, resolution=SIZE, seed=0)
        masks = MaskSet(folder)
        masks.settings["kind"] = "box"
        test_set = open_test_set(photos, mask_set=masks)
        sets.append((evaluate(test_set, tmp_path / "chunks")[1], masks.digest))
    assert sets[0][0] == sets[0][1] != sets[1][0] == sets[1][1]


def damage_file(content, rng):
    """Return wrong contents: unrelated, with a flipped bit, zeroed, or truncated."""
    at, flipped = int(rng.integers(len(content))), bytearray(content)
    flipped[at] ^= 1 << int(rng.integers(8))
    zeroed = content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]
    ends = content[:at], content[:at] + bytes(len(content) - at)
    return b"", b"[1]", bytes(len(content)), bytes(flipped), zeroed, *ends


def test_a_damaged_chunk_is_evaluated_again(photos, tmp_path, caplog):
    test_set = open_test_set(photos)
    table, _ = evaluate(test_set, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for damage in (d for _ in range(300) for d in damage_file(content, rng)):
        path.write_bytes(damage)
        caplog.clear()
        assert (evaluator._read(path) is None) == (damage != content)
        assert len(caplog.records) == (damage != content)
    again, _ = evaluate(test_set, tmp_path)
    assert str(path) in caplog.text
    assert_same(again, table)


def test_a_folder_in_place_of_a_chunk_is_kept(photos, tmp_path):
    test_set = open_test_set(photos)
    evaluate(test_set, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.unlink()
    (path / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{path} .*Is a directory"):
        evaluate(test_set, tmp_path)
    assert (path / "sub").is_dir()


def test_the_image_with_nan_is_named(photos, tmp_path, monkeypatch):
    """With the method. Its chunk is not saved, but those before it are."""
    monkeypatch.setattr(evaluator, "CHUNK_SIZE", 5)
    test_set, batches = open_test_set(photos), []

    def complete(image, known):
        batches.append(len(image))
        rgb = 0 * image
        if len(batches) == 4:  # images 8 and 9 of the second chunk, and padding
            rgb[1, 0, 0, 2] = np.inf
        return rgb

    method = Method(network_fill(complete), {"a": "b"}, name="runs/a")
    with pytest.raises(UserError) as caught:
        Evaluation(test_set, NO_NETWORKS, tmp_path).run([method], batch_size=3)
    message = str(caught.value)
    assert "runs/a" in message and "NaN" in message and test_set[9].name in message
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_fills_do_not_depend_on_the_holes_content(photos):
    test_set = open_test_set(photos)
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


def test_a_network_with_nan_is_refused(photos):
    truth, hole = open_test_set(photos)[0][1:]
    with pytest.raises(UserError, match="NaN"):
        network_fill(lambda image, known: image * np.nan)(truth[None], hole[None])


def test_known_pixels_are_kept(photos):
    test_set = open_test_set(photos)
    pairs = test_set.batch(range(12))
    truths = np.stack([pair.truth for pair in pairs])
    holes = np.stack([pair.hole for pair in pairs])
    for fill in (mean_colour, network_fill(lambda image, known: image * 0 + 7)):
        results = fill(truths, holes)
        np.testing.assert_array_equal(results[~holes], truths[~holes])
        assert results.dtype == np.uint8
    assert (results[holes] == 255).all()


def test_another_mask_changes_the_protocol(tmp_path):
    photos = photo_folder(tmp_path / "photos")
    masks = mask_folder(tmp_path / "masks", photos)
    hashes = []
    for changed in (False, False, True):
        if changed:
            path = min(masks.iterdir())
            with Image.open(path) as mask:
                other = ImageOps.mirror(mask.convert("L"))
            other.save(path)
        test_set = open_test_set(photos, masks)
        _, digest = evaluate(test_set, tmp_path / f"{len(hashes)}")
        hashes.append(make_protocol(test_set, FeatureNetworks(), digest)["hash"])
    assert hashes[0] == hashes[1] != hashes[2]
    drawn = open_test_set(photos)
    _, digest = evaluate(drawn, tmp_path / "drawn")
    assert make_protocol(drawn, FeatureNetworks(), digest)["hash"] not in hashes
    json.dumps(make_protocol(drawn, FeatureNetworks(), digest))


def test_default_masks_are_those_of_prepare(photos, tmp_path):
    kind = {"kind": "free_form", "count": 12, "resolution": SIZE, "seed": 0}
    write_mask_set(tmp_path / "set", **kind)
    written = MaskSet(tmp_path / "set")
    sets = open_test_set(photos), open_test_set(photos, mask_set=written)
    for index, test_set in enumerate(sets):
        for n in range(12):
            np.testing.assert_array_equal(test_set[n].hole, written[n] == 0)
        assert evaluate(test_set, tmp_path / f"{index}")[1] == written.digest
    protocols = [make_protocol(one, FeatureNetworks(), written.digest) for one in sets]
    assert protocols[0] == protocols[1]


def test_a_mask_set_that_does_not_fit(photos, tmp_path):
    kind = {"kind": "box", "count": 11, "seed": 0}
    write_mask_set(tmp_path / "few", **kind, resolution=SIZE)
    with pytest.raises(UserError, match=r"11 .* 12 .*--samples"):
        open_test_set(photos, mask_set=MaskSet(tmp_path / "few"))
    write_mask_set(tmp_path / "small", **kind, resolution=16)
    with pytest.raises(UserError, match=r"16 .*--resolution=32"):
        open_test_set(photos, mask_set=MaskSet(tmp_path / "small"))


def test_a_broken_image_is_named(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"broken\.png"):
        evaluate(open_test_set(photos), tmp_path)


def test_bins_are_by_hole_ratio():
    table = random_table(50)
    rows = table.by_hole_ratio()
    assert sum(row["pictures"] for row in rows) == 50
    for row in rows:
        inside = (table.ratios >= row["from"]) & (table.ratios < row["to"])
        expected = table.metrics["hole_psnr"][inside].mean()
        assert row["hole_psnr"] == pytest.approx(expected)
        real, fake = (
            Moments.empty(6).update(x[inside]) for x in (table.real, table.fake)
        )
        assert row["fid"] == pytest.approx(fid(real, fake))
    edges = np.array(HOLE_RATIO_BINS)
    nothing = np.zeros((len(edges), 0), np.float32)
    names = tuple(map(str, edges))
    on_edges = Table(names, edges, {"l1": edges}, nothing, nothing).by_hole_ratio()
    assert [row["pictures"] for row in on_edges] == [1, 1, 1, 1, 2]
    assert [row["from"] for row in on_edges] == list(HOLE_RATIO_BINS[:-1])


def test_narrow_bins_are_beside_the_wide_ones():
    ratios = np.array([0.05, 0.1, 0.15, 0.2, 0.29, 0.3, 0.45, 0.5, 0.7])
    names, nothing = tuple(map(str, ratios)), np.zeros((9, 0), np.float32)
    table = Table(names, ratios, {"l1": np.arange(9.0)}, nothing, nothing)

    def rows(*edges):
        return [
            (row["from"], row["to"], row["pictures"], row["l1"])
            for row in table.by_hole_ratio(*edges)
        ]

    assert rows(NARROW_HOLE_RATIO_BINS) == [
        *((0.1, 0.2, 2, 1.5), (0.2, 0.3, 2, 3.5), (0.3, 0.4, 1, 5), (0.4, 0.5, 1, 6))
    ]
    assert rows() == [
        *((0.0, 0.2, 3, 1), (0.2, 0.4, 3, 4), (0.4, 0.6, 2, 6.5), (0.6, 0.8, 1, 8))
    ]


def test_the_interval_of_a_mean():
    """For a normal distribution it is 1.96 standard errors on either side."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(lambda rows: values[rows].mean(), len(values))
    error = values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_nan_metrics_do_not_count():
    table = random_table(10)
    table.metrics["hole_psnr"][3:] = np.nan
    found = table.compute()["hole_psnr"]
    assert found["value"] == pytest.approx(table.metrics["hole_psnr"][:3].mean())
    assert found["low"] <= found["value"] <= found["high"]
    extremes = table.extremes(2)
    assert set(extremes["best"]) | set(extremes["worst"]) == {0, 1, 2}
