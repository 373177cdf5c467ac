"""Imputation networks against PyTorch and the authors' arrays, and their identities."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import entries, random_variables, relative_l2

from migan_jax.config import load_config
from migan_jax.inpainting import Model
from migan_jax.models.imputation import (
    ConvLayer,
    Encoder,
    Estimator,
    FeatureMap,
    ImputationDiscriminator,
    ImputationGenerator,
    Propagation,
    SkipConnection,
    _activate,
    _fading_maps,
    double,
    halve,
    make_maps,
)
from migan_jax.ops.certainty import impute, mean_in_window
from migan_jax.summary import count_parameters
from migan_jax.training.programs import build_system
from migan_jax.weights.checkpoint import Checkpoint

GOLDEN = Path(__file__).parent / "golden" / "imputation_layers.npz"
SIDE, POINTS, FADE = 16, 7, 0.3
CHANNELS = {4: 16, 8: 16, 16: 8}  # as PyTorch takes them
SIZES = {"resolution": SIDE, "channel_base": 128, "channel_max": 16}
COUNTS = {  # of the authors' code, without unused copies of dense layers
    ("fdf128:a", "generator"): 3_170_918,
    ("fdf128:c", "generator"): 3_138_966,
    ("fdf128:d", "generator"): 3_052_116,
    ("fdf128:e", "generator"): 3_053_330,
    ("places256:b", "generator"): 3_059_670,
    ("places256:d", "generator"): 2_973_050,
    ("places256:e_conv", "generator"): 3_061_221,
    ("places256:e", "generator"): 2_974_587,
    ("places256", "generator"): 11_528_427,
    ("fdf128:b", "discriminator"): 3_168_577,
    ("fdf128:e", "discriminator"): 3_178_571,
    ("places256:b", "discriminator"): 2_997_033,
    ("places256:e", "discriminator"): 3_122_521,
    ("places256", "discriminator"): 12_419_417,
}


@pytest.mark.parametrize(("recipe", "role"), COUNTS)
def test_parameter_counts_of_the_ladder(recipe, role):
    config = load_config(f"imputation_{recipe}", (), False)
    network = build_system(config, {}).networks[role]
    # The authors' grown networks keep input and output layers of two levels.
    network = network.clone(smallest=network.resolution // 2)
    assert sum(count_parameters(network).values()) == COUNTS[recipe, role]
    if role == "discriminator":
        assert all(network.channels(r) % 8 == 0 for r in (4, 64, 128))


# Layers against the authors'.


@pytest.fixture(scope="module")
def golden():
    """The authors' arrays; certainties have no channel."""
    with np.load(GOLDEN) as file:
        arrays = {name: jnp.asarray(file[name]) for name in file.files}
    flat = "c", "c_out", "c_out_allknown", "c_dec", "c_enc"
    return {k: v[..., 0] if k.split("/")[1] in flat else v for k, v in arrays.items()}


assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "size", "resolution"),
    [("c3_r16", 3, 16), ("c3_r8", 3, 8), ("c1_rN", 1, 0)],
)
def test_imputed_convolutions_equal_the_authors(case, size, resolution, golden):
    arrays = {k.split("/")[1]: v for k, v in golden.items() if k.startswith(case)}
    estimator = {"weight": arrays["ev_kernel"], "bias": arrays["ev_bias"]}
    params = {"weight": arrays["kernel"], "bias": arrays["bias"]}
    params["estimator"] = estimator
    x, c = arrays["x"], arrays["c"]
    window = len(arrays["ev_kernel"])
    imputed = Estimator(window, "code").apply({"params": estimator}, x, c)
    assert_close(imputed, x * c[..., None] + arrays["h"] * (1 - c[..., None]))
    if size > 1:
        params["certainty"] = {"weight": arrays["mask_kernel"]}
        propagation = Propagation(size, "code")
        known = propagation.apply({"params": params["certainty"]}, jnp.ones_like(c))
        assert_close(known, arrays["c_out_allknown"])
    layer = ConvLayer(arrays["y"].shape[-1], size, resolution, "code")
    y, certainty = layer.apply({"params": params}, FeatureMap(x, c))
    assert_close(y, _activate(arrays["y"]))
    assert_close(certainty, arrays["c_out"])
    if size == 1:
        np.testing.assert_array_equal(certainty, c)


def test_other_layers_equal_the_authors(golden):
    x = golden["down/x"]
    halved = weighted_halve(x, golden["down/c"])
    assert_close(halved.x, golden["down/y"])
    assert_close(halved.certainty, golden["down/c_out"])
    assert_close(_activate(jnp.where(x < 0, 5 * x, x)), golden["pixnorm/y"])
    pair = [
        FeatureMap(golden[f"skip/x_{k}"], golden[f"skip/c_{k}"]) for k in ("dec", "enc")
    ]
    merged = merge(
        *pair, encoder=golden["skip/beta_enc"], decoder=golden["skip/beta_dec"]
    )
    assert_close(merged.x, golden["skip/y"])
    assert_close(merged.certainty, golden["skip/c_out"])


def weighted_halve(x, c):
    encoder = Encoder(SIDE, 128, 16, "code", weighted_down=True, remat=False)
    return encoder._halve(FeatureMap(x, c))


def merge(below, skip, **factors):
    return SkipConnection().apply({"params": factors}, below, skip)


# Whole networks against PyTorch.


def to_flax(network, named):
    """Return the tree of PyTorch's parameters or their gradients, by name."""
    heads = {
        "from_rgb.0.": f"from_rgb.{SIDE}.",
        "old_from_rgb.0.": f"from_rgb.{SIDE // 2}.",
        "to_rgb.": f"rgb_convolutions.{SIDE}.",
        "old_to_rgb.": f"rgb_convolutions.{SIDE // 2}.",
        "layers.from_rgb.conv.layers.0.": f"layers.from_rgb.{SIDE}.",
        "layers.old_from_rgb.conv.layers.0.": f"layers.from_rgb.{SIDE // 2}.",
    }
    tensors = {}
    for name, tensor in named.items():
        old = next((head for head in heads if name.startswith(head)), "")
        if network.grows and old:
            name = heads[old] + name.removeprefix(old)
        tensors[name] = tensor.numpy()
    params = {}
    for entry in entries(network):
        if entry.collection == "params":
            *path, last = entry.path
            place = functools.reduce(lambda d, k: d.setdefault(k, {}), path, params)
            place[last] = entry.from_tensors(tensors)
            for name in entry.names:
                del tensors[name]
    assert not tensors
    return params


def perturb(twin):
    """Randomise what is constant at first, such as biases."""
    import torch

    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith(("bias", "mask_updater.weight", "beta0", "beta1")):
                parameter += 0.3 * torch.randn_like(parameter)
    return twin.double()


def draw(seed=0, side=SIDE, latents=4, dtype=np.float64):
    """Draw masked images with their masks, latents and keypoints."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((2, side, side, 1)) < 0.6).astype(dtype)
    image = rng.uniform(-1, 1, (2, side, side, 3)).astype(dtype)
    z = rng.standard_normal((2, 4, 4, latents)).astype(dtype)
    return image, mask, z, rng.random((2, POINTS, 2)).astype(dtype)


def to_torch(x):
    import torch

    x = np.moveaxis(x, -1, 1) if x.ndim == 4 else x.reshape(len(x), -1)
    return torch.from_numpy(np.array(x, order="C"))


def call_generator(network, variables, image, mask, z, points, fade=None):
    """Return the output, as far as the network has grown."""
    if fade is not None:
        variables = {**variables, "stats": {"fade": jnp.asarray(fade)}}
    x = jnp.concatenate([image * mask, mask], axis=-1)
    known = (points,) if network.points else ()
    return network.apply(variables, x, z, *known)


def assert_equal_generators(theirs, ours, fade=None, known=True, twin_fade=1.0):
    """`known`: whether the generator takes keypoints."""
    from parity import nhwc

    ours = ours.clone(points=POINTS if known else 0)
    variables = {"params": to_flax(ours, theirs.state_dict())}
    image, mask, z, points = draw()
    expected = theirs(
        *map(to_torch, (image * mask, mask, z)),
        to_torch(points) if known else None,
        twin_fade if fade is None else fade,
    )
    call = jax.jit(functools.partial(call_generator, ours))
    output, _ = call(variables, image, mask, z, points, fade)
    assert relative_l2(output, nhwc(expected)) < 1e-9


SMALL = ImputationGenerator(**SIZES, latents=4)
TINY = SMALL.clone(resolution=SIDE // 2)  # to compile fast
GENERATORS = {
    "code": ({"keypoints": POINTS}, {}),
    "paper": (
        {"keypoints": POINTS, "form": "paper", "pose": "one_hot"},
        {"form": "paper", "pose": "maps"},
    ),
    "conv": ({"conv": "conv", "keypoints": POINTS}, {"imputes": False}),
    "weighted": ({"down": "weighted"}, {"weighted_down": True}),
}


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    [
        # Row "d" below has weighted averages, too.
        pytest.param(case, marks=pytest.mark.full if case == "weighted" else ())
        for case in GENERATORS
    ],
)
def test_outputs_equal_pytorchs(case):
    import imputation_torch
    import torch

    theirs, ours = GENERATORS[case]
    torch.manual_seed(1)
    twin = perturb(imputation_torch.Generator(SIDE, CHANNELS, z_channels=4, **theirs))
    assert_equal_generators(twin, SMALL.clone(**ours), known="keypoints" in theirs)


GROWING = SMALL.clone(grows=True, smallest=SIDE // 2, grown=SIDE, fades=True)
ROWS = {  # of the ladder, which grow
    "a": ({"conv": "conv", "pose": "one_hot"}, {"imputes": False, "pose": "maps"}),
    "c": ({"conv": "conv"}, {"imputes": False}),
    "d": ({"down": "weighted"}, {"weighted_down": True}),
}


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", ROWS)
def test_outputs_of_fading_networks_equal_pytorchs(row, monkeypatch):
    import imputation_torch
    import torch

    theirs, ours = ROWS[row]
    torch.manual_seed(2)
    twin = imputation_torch.Generator(
        SIDE, CHANNELS, keypoints=POINTS, z_channels=4, growing=True, **theirs
    )
    fade_maps(monkeypatch)
    assert_equal_generators(perturb(twin), GROWING.clone(**ours), FADE)


def fade_maps(monkeypatch):
    """Fade in the highest level's maps: PyTorch's have their full share at once."""
    import imputation_torch

    make = imputation_torch.one_hot_maps

    def mixed(points, size):
        maps = make(points, size)
        if size < SIDE:
            return maps
        return imputation_torch.lerp(
            imputation_torch.up2(make(points, size // 2)), maps, FADE
        )

    monkeypatch.setattr(imputation_torch, "one_hot_maps", mixed)


SCORING = ImputationDiscriminator(**SIZES)
DISCRIMINATORS = {
    "scalars": ({"keypoints": POINTS, "pose_resolution": SIDE}, {}),
    "maps": (
        {"keypoints": POINTS, "pose": "one_hot", "residual": False},
        {"pose": "maps", "shortcuts": False},
    ),
    "no points": ({"residual": False}, {"shortcuts": False}),
    "fading": (
        {"keypoints": POINTS, "pose": "one_hot", "residual": False, "growing": True},
        {
            **{"pose": "maps", "shortcuts": False, "grows": True, "fades": True},
            **{"grown": SIDE, "smallest": SIDE // 2},
        },
    ),
}


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", DISCRIMINATORS)
def test_scores_equal_pytorchs(case, monkeypatch):
    import imputation_torch
    import torch

    theirs, ours = DISCRIMINATORS[case]
    torch.manual_seed(3)
    twin = perturb(imputation_torch.Discriminator(SIDE, CHANNELS, **theirs))
    known = "keypoints" in theirs
    network = SCORING.clone(**ours, points=POINTS if known else 0)
    image, mask, _, points = draw()
    fade = FADE if network.fades else 1.0
    if network.fades:
        fade_maps(monkeypatch)
    inputs = image, image * mask, mask
    expected = twin(*map(to_torch, inputs), to_torch(points) if known else None, fade)
    scores = jax.jit(network.apply)(
        {"params": to_flax(network, twin.state_dict())},
        np.concatenate(inputs, axis=-1),
        *([points] if known else []),
        fade=fade,
    )
    assert scores.shape == (2, 1)
    assert relative_l2(scores[:, 0], expected.detach().numpy()) < 1e-9


# Growth.


@pytest.mark.parametrize("row", ["a", pytest.param("c", marks=pytest.mark.full), "d"])
def test_networks_fade_in_from_those_of_half_the_resolution(row):
    """At a share of 0 they are the same, whatever the new layers are."""
    large = GROWING.clone(**ROWS[row][1], points=POINTS)
    small = large.clone(grown=SIDE // 2, fades=False)
    variables = random_variables(large)
    image, mask, z, points = draw(dtype=np.float32)
    below = FeatureMap(*(halve(x) for x in (image * mask, mask)))
    if large.weighted_down:
        below = weighted_halve(image * mask, mask[..., 0])
        below = below._replace(certainty=below.certainty[..., None])
    x = jnp.concatenate(below, axis=-1)
    expected, _ = jax.jit(small.apply)(variables, x, z, points)
    call = jax.jit(functools.partial(call_generator, large))
    output, images = call(variables, image, mask, z, points, 0.0)
    assert set(images) == {SIDE // 2, SIDE}
    np.testing.assert_array_equal(output, double(expected))


def test_discriminators_fade_in_from_those_of_half_the_resolution():
    large = SCORING.clone(**DISCRIMINATORS["fading"][1], points=POINTS)
    small = large.clone(grown=SIDE // 2, fades=False)
    variables = random_variables(large)
    image, mask, _, points = draw(dtype=np.float32)
    x = np.concatenate([image, image * mask, mask], axis=-1)
    expected = jax.jit(small.apply)(variables, halve(x), points)
    scores = jax.jit(large.apply)(variables, x, points, 0.0)
    np.testing.assert_array_equal(scores, expected)


def test_maps_mark_keypoints_and_fade_in():
    points = jnp.array([[[0.0, 0.99], [0.3, 0.6], [1.0, -0.1]]])
    maps = np.asarray(make_maps(points, 8, 4))
    assert maps.shape == (1, 8, 4, 3) and maps.sum() == 3
    assert maps[0, 7, 0, 0] == maps[0, 4, 1, 1] == maps[0, 0, 3, 2] == 1
    old = double(make_maps(points, 4, 2))
    for fade, expected in (
        (None, maps),
        (1.0, maps),
        (0.0, old),
        (0.5, (old + maps) / 2),
    ):
        np.testing.assert_array_equal(_fading_maps(points, 8, 4, fade), expected)


# Identities.


@pytest.mark.parametrize("imputes", [True, False])
def test_holes_are_not_read_and_known_pixels_are_kept(imputes):
    network = TINY.clone(imputes=imputes)
    model = Model.of(Checkpoint(network, random_variables(network)["params"], {}))
    image, mask, z, _ = draw(side=SIDE // 2, dtype=np.float32)
    image = (image + 1) / 2
    complete = jax.jit(model.complete)
    first, second = (
        np.asarray(complete(np.where(mask > 0, image, fill), mask, z))
        for fill in (0.1, 0.9)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first * mask, image * mask)
    assert np.abs(first - image).max() > 0.1
    np.testing.assert_array_equal(complete(image, np.ones_like(mask), z), image)


def test_imputed_convolutions_read_nothing_uncertain():
    x, c = draw_features()
    layer = ConvLayer(8, 3, SIDE, "code")
    variables = layer.init(jax.random.key(0), FeatureMap(x, c))
    y, certainty = layer.apply(variables, FeatureMap(x, c))
    other = jnp.where(c[..., None] > 0, x, 9.0)
    np.testing.assert_array_equal(layer.apply(variables, FeatureMap(other, c))[0], y)
    assert 0 <= certainty.min() < certainty.max() <= 1
    np.testing.assert_allclose(jnp.mean(y[:, :8] ** 2, axis=-1), 1, rtol=1e-4)


def draw_features(seed=0, channels=6):
    """Draw features and certainties, with a hole of eight rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, SIDE, SIDE, channels)).astype(np.float32)
    c = rng.random((1, SIDE, SIDE)).astype(np.float32)
    c[:, 8:] = 0
    return jnp.asarray(x), jnp.asarray(c)


def test_imputed_convolutions_of_certain_features_are_plain():
    x, c = draw_features()
    layer = ConvLayer(8, 3, SIDE, "code")
    variables = layer.init(jax.random.key(0), FeatureMap(x, jnp.ones_like(c)))
    plain = {"params": {k: variables["params"][k] for k in ("weight", "bias")}}
    y, certainty = layer.apply(variables, FeatureMap(x, jnp.ones_like(c)))
    np.testing.assert_allclose(
        y, layer.apply(plain, FeatureMap(x, None)).x, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(certainty[0, 4, 4], 2 / (1 + np.exp(-9)) - 1 + 1e-6)


def test_first_certainties():
    """Everything, a half and nothing known in a window, in both forms."""
    layer = Propagation(3, "code")
    c = draw_features()[1].at[:, :4].set(1)
    variables = layer.init(jax.random.key(0), c)
    certainty = layer.apply(variables, c)
    full, nothing = 2 / (1 + np.exp(-9.0)) - 1 + 1e-6, 1e-6
    np.testing.assert_allclose(certainty[0, 1:3, 1:-1], full, rtol=1e-6)
    np.testing.assert_allclose(certainty[0, 9:], nothing, rtol=0.1)
    papers = Propagation(3, "paper").apply(variables, c)
    np.testing.assert_allclose(papers[0, 9:], 0.5)
    np.testing.assert_allclose(papers[0, 1:3, 1:-1], 1 / (1 + np.exp(-9.0)), rtol=1e-6)


def test_skip_connections_prefer_what_is_certain():
    below, skip = (FeatureMap(*draw_features(seed)) for seed in (0, 1))
    zero = jnp.zeros_like(below.certainty)
    one = {"encoder": jnp.ones(()), "decoder": jnp.ones(())}
    for features, other in ((skip, below), (below, skip)):
        nowhere = other._replace(certainty=zero)
        certain = features._replace(certainty=zero + 0.5)
        pair = (nowhere, certain) if features is skip else (certain, nowhere)
        np.testing.assert_allclose(merge(*pair, **one).x, features.x, atol=1e-6)
    nowhere = [features._replace(certainty=zero) for features in (below, skip)]
    np.testing.assert_array_equal(merge(*nowhere, **one).x, below.x)
    merged = merge(below, skip, **one).certainty
    low, high = (f(below.certainty, skip.certainty) for f in (jnp.minimum, jnp.maximum))
    assert (merged >= low - 1e-6).all() and (merged <= high + 1e-6).all()

    def loss(factors):
        return jnp.sum(merge(below, skip, **factors).x ** 2)

    for factor, is_learned in ((-0.5, False), (0.5, True)):
        gradients = jax.grad(loss)({**one, "encoder": jnp.asarray(factor)})
        assert (gradients["encoder"] != 0) == is_learned


def test_averages_of_certain_features():
    x, _ = draw_features()
    halved = weighted_halve(x, jnp.ones(x.shape[:3]))
    np.testing.assert_allclose(halved.x, halve(x) / 1.01, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(halved.certainty, 1)


@pytest.mark.parametrize("sums", [True, False])
def test_output_is_the_mean_of_levels_or_the_highest(sums):
    """A sum of which all but one are 0 is that one, divided by their number."""
    network = TINY.clone(sums=sums, imputes=False)
    variables = random_variables(network)
    decoder = variables["params"]["decoder"]
    if sums:
        decoder["b4"]["to_rgb"] = jax.tree.map(np.zeros_like, decoder["b4"]["to_rgb"])
    else:
        assert "to_rgb" not in decoder["b4"]
    call = jax.jit(functools.partial(call_generator, network))
    output, images = call(variables, *draw(side=SIDE // 2, dtype=np.float32))
    divisor = 2 if sums else 1
    assert len(images) == divisor
    np.testing.assert_allclose(output * divisor, images[SIDE // 2], rtol=1e-6)


def test_other_sizes_take_latents_of_their_own():
    """Heights and widths divisible by the lowest level's pixels; others are refused."""
    variables = random_variables(SMALL)
    z = np.zeros((1, 4, 4, 4), np.float32)
    image = jax.ShapeDtypeStruct((1, 24, 40, 4), np.float32)
    output, _ = jax.eval_shape(SMALL.apply, variables, image, z)
    assert output.shape == (1, 24, 40, 3)
    image = jax.ShapeDtypeStruct((1, 24, 42, 4), np.float32)
    with pytest.raises(ValueError, match="42") as caught:
        jax.eval_shape(SMALL.apply, variables, image, z)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("imputes", [True, pytest.param(False, marks=pytest.mark.full)])
def test_half_precision_outputs_are_float32_and_near(imputes):
    network = TINY.clone(imputes=imputes)
    variables = random_variables(network)
    arguments = variables, *draw(side=SIDE // 2, dtype=np.float32)
    half, whole = (
        jax.jit(functools.partial(call_generator, one))(*arguments)[0]
        for one in (network.clone(dtype=jnp.bfloat16), network)
    )
    assert half.dtype == jnp.float32
    assert relative_l2(half, whole) < 0.05


# Operations on certainties.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("size", "epsilon"), [(3, 0.01), (5, 0.0)])
def test_imputation_equals_a_loop(size, epsilon):
    """Where nothing is certain, there is no estimate without epsilon."""
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((1, 7, 9, 2)), rng.standard_normal(2)
    kernel = rng.standard_normal((size, size, 1, 2))
    c = rng.random((1, 7, 9))
    c[:, :, 3:] = 0
    if not epsilon:
        bias[:] = 0
    reach = size // 2
    edges = (0, 0), (reach, reach), (reach, reach)
    weighted = np.pad(x * c[..., None], (*edges, (0, 0)))
    padded = np.pad(c, edges)
    means, expected = np.zeros_like(c), c[..., None] * x
    for i, j in np.ndindex(7, 9):
        means[:, i, j] = padded[:, i : i + size, j : j + size].sum((1, 2)) / size**2
        window = weighted[:, i : i + size, j : j + size]
        total = (window * kernel[:, :, 0]).sum((1, 2)) + bias
        support = means[:, i, j] + epsilon
        estimate = total / support if support > 0 else 0
        expected[:, i, j] += (1 - c[:, i, j]) * estimate
    np.testing.assert_allclose(mean_in_window(jnp.asarray(c), size), means, atol=1e-12)
    result = impute(x, c, kernel, jnp.asarray(bias) if epsilon else None, epsilon)
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_estimates_of_constant_features():
    """A mean filter estimates x / 1.01; without support it has its bias / 0.01."""
    x = jnp.full((1, 9, 9, 1), 3.0)
    kernel = jnp.full((5, 5, 1, 1), 1 / 25)
    hole = jnp.ones((1, 9, 9)).at[:, 4, 4].set(0)
    imputed = impute(x, hole, kernel, None, 0.01)
    np.testing.assert_allclose(
        imputed[0, 4, 4, 0], 3 * 24 / 25 / (24 / 25 + 0.01), rtol=1e-6
    )
    nowhere = impute(x, jnp.zeros_like(hole), kernel, jnp.full(1, 0.5), 0.01)
    np.testing.assert_allclose(nowhere, 50, rtol=1e-6)
