"""The Python API: load any generator, run the bare network, fill photos."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from pictures import hole_in, picture
from PIL import Image
from scipy.ndimage import distance_transform_edt
from test_weights_names import NETWORKS, plausible_tensors
from variables import CODES, NARROW, constants

import migan_jax
from migan_jax.errors import UserError
from migan_jax.families import from_tensors, load_checkpoint, save_checkpoint
from migan_jax.geometry.fill import DEFAULT_FEATHER
from migan_jax.weights.tensor_files import write_tensors

SIZE = NARROW["resolution"]
STUDENTS = ["migan_fused", "migan_3_kernels", "migan_1_kernel"]


def random_inputs(count=2, size=SIZE, seed=5):
    shape = (count, size, size, 4)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One file of every generator, loaded by name."""
    folder = tmp_path_factory.mktemp("files")
    loaded = {}
    for name in (*STUDENTS, "comodgan"):
        path = folder / f"{name}.safetensors"
        write_tensors(path, plausible_tensors(NETWORKS[name]))
        loaded[name] = migan_jax.load(str(path))
    return loaded


# Loading.


def test_kernel_forms_are_inferred(models):
    forms = {name: models[name].network.reparam.form for name in STUDENTS}
    assert forms == {
        "migan_fused": "fused",
        "migan_3_kernels": "collapsed",
        "migan_1_kernel": "collapsed",
    }
    assert models["comodgan"].network == NETWORKS["comodgan"]
    assert models["migan_fused"].network == NETWORKS["migan_fused"]


@pytest.mark.parametrize("name", [*STUDENTS, "comodgan"])
def test_params_are_the_trainable_parameters(name, models):
    """As many as in the released file, without noise and averages."""
    tensors = plausible_tensors(NETWORKS[name])
    fixed = {*constants(NETWORKS[name])}
    fixed |= {k for k in tensors if k.endswith(("noise_const", "w_avg"))}
    merged = {"w1", "w2"}  # three kernels are merged into one
    expected = sum(
        value.size
        for key, value in tensors.items()
        if key not in fixed and key.rpartition(".")[2] not in merged
    )
    model = models[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == expected
    assert len(jax.tree.leaves(model.stats)) == sum(
        key.endswith(("noise_const", "w_avg")) for key in tensors
    )


def test_workdirs_load(tmp_path, models):
    path = tmp_path / "run"
    save_checkpoint(models["migan_3_kernels"].checkpoint, path, "training")
    model = migan_jax.load(path)
    jax.tree.map(
        np.testing.assert_array_equal, model.params, models["migan_3_kernels"].params
    )


@pytest.mark.torch
def test_torch_files_load(tmp_path, models):
    pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    write_tensors(path, plausible_tensors(NETWORKS["migan_fused"]))
    model = migan_jax.load(path)
    jax.tree.map(
        np.testing.assert_array_equal, model.params, models["migan_fused"].params
    )


@pytest.mark.parametrize("name", ["migan_discriminator", "comodgan_discriminator"])
def test_discriminators_are_refused(name, tmp_path):
    path = tmp_path / "d.safetensors"
    write_tensors(path, plausible_tensors(NETWORKS[name]))
    with pytest.raises(UserError) as caught:
        migan_jax.load(path)
    for part in (str(path), "discriminator", "generator"):
        assert part in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt"):
        migan_jax.load(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="checkpoints/"):
        migan_jax.load(tmp_path)


# The network.


def pyramid_shapes(count):
    return {r: (count, r, r, 3) for r in (4, 8, 16)}


@pytest.mark.parametrize("name", ["migan_fused", "migan_3_kernels"])
def test_forward(name, models):
    model = models[name]
    rgb = model.forward(random_inputs())
    assert rgb.shape == (2, SIZE, SIZE, 3)
    assert rgb.dtype == np.float32
    again, pyramid = model.forward(random_inputs(), pyramid=True)
    assert np.array_equal(again, rgb)  # the noise is stored
    assert {r: y.shape for r, y in pyramid.items()} == pyramid_shapes(2)


def test_forward_of_other_sizes(models):
    x = np.concatenate([random_inputs(1), random_inputs(1, seed=6)], axis=2)  # 16 x 32
    rgb, pyramid = models["migan_fused"].forward(x, pyramid=True)
    assert rgb.shape == (1, SIZE, 2 * SIZE, 3)
    assert pyramid[4].shape == (1, 4, 8, 3)


@pytest.mark.parametrize("name", ["migan_fused", "comodgan"])
def test_pyramid_holds_each_levels_output(name, models):
    """Not the sum of levels: a shifted to-RGB bias shifts only its own level."""
    checkpoint = models[name].checkpoint
    z = None if name == "migan_fused" else np.ones((2, CODES["z_dim"]), np.float32)
    rgb, pyramid = models[name].forward(random_inputs(), z=z, pyramid=True)
    shifted = jax.tree.map(lambda leaf: leaf, checkpoint.params)
    shift = np.array([1, 2, 3], np.float32)
    shifted["synthesis"]["b8"]["torgb"]["bias"] += shift
    changed = migan_jax.Model.of(dataclasses.replace(checkpoint, params=shifted))
    other_rgb, other = changed.forward(random_inputs(), z=z, pyramid=True)
    for r in (4, 16):
        np.testing.assert_allclose(other[r], pyramid[r], rtol=1e-5, atol=1e-4)
    moved = np.asarray(other[8] - pyramid[8])
    np.testing.assert_allclose(moved, np.broadcast_to(shift, moved.shape), atol=1e-3)
    inside = np.asarray(other_rgb - rgb)[:, 4:-4, 4:-4]
    np.testing.assert_allclose(inside, np.broadcast_to(shift, inside.shape), atol=1e-3)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, "list"])
def test_inputs_of_other_types(kind, models):
    model = models["migan_fused"]
    integers = np.round(4 * random_inputs())  # exact in every type
    x = integers.tolist() if kind == "list" else integers.astype(kind)
    rgb = model.forward(x)
    assert rgb.dtype == np.float32
    assert np.array_equal(rgb, model.forward(integers))


def test_forward_is_float32_with_float64_enabled(models):
    with jax.enable_x64(True):
        rgb = models["comodgan"].forward(random_inputs().astype(np.float64))
    assert rgb.dtype == np.float32


def test_the_range_is_not_checked(models):
    rgb = models["migan_fused"].forward(1000 * random_inputs())
    assert np.isfinite(rgb).all()


@pytest.mark.parametrize("shape", [(16, 16, 4), (1, 16, 16, 3), (1, 15, 16, 4), (4,)])
def test_wrong_shapes(shape, models):
    with pytest.raises(ValueError, match=r"\[N, H, W, 4\]"):
        models["migan_fused"].forward(np.zeros(shape))


def test_teacher_takes_its_own_size_only(models):
    with pytest.raises(ValueError, match=r"16x16 .* 32x32"):
        models["comodgan"].forward(random_inputs(1, 32))


def test_teacher_without_z_warns(models, caplog):
    model = models["comodgan"]
    with caplog.at_level(logging.WARNING):
        first, pyramid = model.forward(random_inputs(), pyramid=True)
    assert "seed 0" in caplog.text
    assert first.shape == (2, SIZE, SIZE, 3)
    assert {r: y.shape for r, y in pyramid.items()} == pyramid_shapes(2)
    assert np.array_equal(model.forward(random_inputs()), first)
    caplog.clear()
    z = np.random.default_rng(0).standard_normal((2, CODES["z_dim"]))
    with caplog.at_level(logging.WARNING):
        other = model.forward(random_inputs(), z=z)
    assert not caplog.records
    assert other.dtype == np.float32
    assert not np.array_equal(other, first)


def test_latents_of_wrong_shape_or_name(models):
    for shape in ((1, CODES["z_dim"]), (2, 5), (CODES["z_dim"],)):
        with pytest.raises(ValueError, match=r"z must be \[2, 12\]"):
            models["comodgan"].forward(random_inputs(), z=np.zeros(shape))
    with pytest.raises(ValueError, match=r"MI-GAN .* z"):
        models["migan_fused"].forward(random_inputs(), z=np.zeros((2, CODES["z_dim"])))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["migan_fused", "migan_3_kernels", "comodgan"])
def test_forward_equals_the_twins(name, models):
    pytest.importorskip("torch")
    from migan_jax.twins.build import run_twin

    rng = np.random.default_rng(0)
    codes = {}
    if name == "comodgan":
        codes["z"] = rng.standard_normal((2, CODES["z_dim"]), np.float32)
    tensors = plausible_tensors(NETWORKS[name])
    expected = run_twin(NETWORKS[name], tensors, random_inputs(), *codes.values())
    actual = models[name].forward(random_inputs(), **codes)
    difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert difference <= 1e-5


def test_params_and_network_work_with_flax_and_converters(models, tmp_path):
    model = models["migan_3_kernels"]
    assert model.checkpoint.params is model.params
    save_checkpoint(model.checkpoint, tmp_path / "x.safetensors", "training")
    assert load_checkpoint(tmp_path / "x.safetensors").network == model.network
    tensors = plausible_tensors(NETWORKS["migan_3_kernels"])
    assert (
        from_tensors(tensors).network.reparam.kernels == model.network.reparam.kernels
    )


def test_uint8_inputs_are_refused(models):
    with pytest.raises(ValueError, match="uint8"):
        models["migan_fused"].forward(np.zeros((1, 16, 16, 4), np.uint8))


def test_repr(models):
    assert repr(models["comodgan"]).startswith("Model(comodgan, 16 px, ")


# Photos.


@pytest.fixture(scope="module")
def photo():
    return picture(40, 50)


HOLE = hole_in((40, 50), (10, 20, 16, 27))


@pytest.mark.parametrize("name", ["migan_fused", "comodgan"])
def test_inpaint_changes_the_hole_and_keeps_the_rest(name, models, photo, caplog):
    with caplog.at_level(logging.WARNING):
        result = models[name].inpaint(photo, HOLE)
    assert not caplog.records  # no warning that z is drawn
    assert result.shape == photo.shape and result.dtype == np.uint8
    changed = (result != photo).any(axis=-1)
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    assert changed[HOLE].mean() > 0.9 and not changed[far].any()
    assert np.array_equal(models[name].inpaint(photo, HOLE), result)


def test_inpaint_puts_the_networks_output_into_the_hole(models, photo):
    """A photo of the network's size is not resized."""
    model, part = models["migan_fused"], photo[:SIZE, :SIZE]
    hole = hole_in((SIZE, SIZE), (4, 5, 9, 11))
    image, known = part / 127.5 - 1, 1.0 - hole[..., None]
    rgb = model.forward(np.concatenate([known - 0.5, image * known], -1)[None])[0]
    expected = np.clip(127.5 * (np.asarray(rgb) + 1), 0, 255)
    result = model.inpaint(part, hole, feather=0)
    assert np.array_equal(result[~hole], part[~hole])
    assert np.abs(result[hole] - expected[hole]).max() <= 0.51


def test_inpaint_takes_either_polarity_and_any_array(models, photo):
    model = models["migan_fused"]
    expected = model.inpaint(photo, HOLE)
    black = np.where(HOLE, 0, 255).astype(np.uint8)
    assert np.array_equal(model.inpaint(photo, black, mask_hole="black"), expected)
    assert np.array_equal(model.inpaint(photo, HOLE[..., None]), expected)
    assert np.array_equal(model.inpaint(jax.numpy.asarray(photo), HOLE), expected)
    assert np.array_equal(
        model.inpaint(Image.fromarray(photo), Image.fromarray(HOLE)), expected
    )


def test_inpaint_with_one_crop_and_several(models):
    photo = picture(40, 200)
    hole = hole_in((40, 200), (3, 3, 8, 8), (30, 180, 38, 190))
    model = models["migan_fused"]
    assert not np.array_equal(
        model.inpaint(photo, hole), model.inpaint(photo, hole, crops="one")
    )


@pytest.mark.parametrize(
    ("hole", "parts"),
    [
        (np.ones((40, 50), np.bool_), ["whole image"]),
        (~HOLE, ["98%", "border", "mask_hole='black'"]),
    ],
)
def test_inpaint_warns_of_masks_that_look_wrong(hole, parts, models, photo, caplog):
    with caplog.at_level(logging.WARNING):
        models["migan_fused"].inpaint(photo, hole)
    assert any(all(p in r.getMessage() for p in parts) for r in caplog.records)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mask": np.zeros((50, 40))}, "40x50 .* 50x40"),
        ({"image": np.zeros((40, 50, 4), np.uint8)}, r"uint8 \[H, W, 3\]"),
        ({"mask_hole": "red"}, "mask_hole .*'red'"),
        ({"feather": -1}, "feather .* 2 .* 16 .*-1"),
        ({"crops": "all"}, "crops .*'all'"),
    ],
)
def test_inpaint_refuses_wrong_arguments(arguments, match, models, photo):
    with pytest.raises(UserError, match=match):
        models["migan_fused"].inpaint(**{"image": photo, "mask": HOLE, **arguments})


# Whole images, for any family.


@pytest.mark.parametrize("name", ["migan_fused", "comodgan"])
def test_complete_pastes_the_networks_output_into_the_hole(name, models):
    model, rng = models[name], np.random.default_rng(0)
    image = rng.random((2, SIZE, SIZE, 3), np.float32)
    known = (rng.random((2, SIZE, SIZE, 1)) < 0.7).astype(np.float32)
    result = np.asarray(model.complete(image, known))
    x = np.concatenate([known - 0.5, (2 * image - 1) * known], axis=-1)
    expected = (np.clip(model.forward(x), -1, 1) + 1) / 2
    hole = np.broadcast_to(known == 0, image.shape)
    np.testing.assert_allclose(result[hole], expected[hole], atol=1e-5)
    assert np.array_equal(result[~hole], image[~hole])
    other = np.where(hole, np.nan, image)  # values in the hole are ignored
    assert np.array_equal(model.complete(other, known), result)


def test_complete_can_be_traced(models):
    model = models["migan_fused"]
    image = np.random.default_rng(0).random((1, SIZE, SIZE, 3), np.float32)
    known = np.ones((1, SIZE, SIZE, 1), np.float32)
    known[:, :, SIZE // 2 :] = 0
    compiled = jax.jit(model.complete)(image, known)
    np.testing.assert_allclose(compiled, model.complete(image, known), atol=1e-6)
    slope = jax.grad(lambda x: model.complete(x, known)[:, :, -1].sum())(image)
    assert np.abs(slope[:, :, 0]).max() > 0 and not slope[:, :, -1].any()


def test_latents_are_arguments_or_drawn_from_a_seed(models):
    model = models["comodgan"]
    image, known = np.zeros((2, SIZE, SIZE, 3)), np.zeros((2, SIZE, SIZE, 1))
    first, other = (model.complete(image, known, seed=seed) for seed in (0, 1))
    assert not np.allclose(first, other)
    z = np.asarray(jax.random.normal(jax.random.key(1), (2, CODES["z_dim"])))
    np.testing.assert_allclose(model.complete(image, known, z=z), other, atol=1e-6)
    photo, hole = np.zeros((SIZE, SIZE, 3), np.uint8), np.ones((SIZE, SIZE), bool)
    filled = [model.inpaint(photo, hole, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(*filled[:2]) and not np.array_equal(*filled[1:])


@pytest.mark.parametrize(
    ("image", "known", "latents", "match"),
    [
        ((1, 16, 16, 4), (1, 16, 16, 1), {}, r"\[N, H, W, 3\]"),
        ((1, 16, 16, 3), (1, 16, 16), {}, r"known .*\[N, H, W, 1\]"),
        ((2, 16, 16, 3), (1, 16, 16, 1), {}, r"\[2, 16, 16, 3\] and"),
        ((1, 16, 16, 3), (1, 16, 16, 1), {"z": np.ones((1, 9))}, "no z"),
        ((1, 16, 16, 3), (1, 16, 16, 1), {"points": np.ones(7)}, "no points"),
    ],
)
def test_complete_refuses_wrong_arguments(image, known, latents, match, models):
    with pytest.raises(ValueError, match=match):
        models["migan_fused"].complete(np.zeros(image), np.zeros(known), **latents)
    with pytest.raises(ValueError, match=r"image .*uint8"):
        models["migan_fused"].complete(np.zeros(image, np.uint8), np.zeros(known))
