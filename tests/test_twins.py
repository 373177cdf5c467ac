"""The PyTorch twins: released names and shapes, and the layers' results."""

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from parity import randomise  # noqa: E402
from variables import CODES, NARROW  # noqa: E402

from migan_jax.twins import comodgan, layers, migan, separable  # noqa: E402
from migan_jax.twins.discriminators import (  # noqa: E402
    TorchCoModGANDiscriminator,
    TorchMIGANDiscriminator,
)

pytestmark = pytest.mark.torch

KEYS = Path(__file__).parent / "keys"
NETWORKS = {
    "migan_inference_G_256": lambda: migan.TorchMIGANGenerator(256),
    "migan_inference_G_512": lambda: migan.TorchMIGANGenerator(512),
    "migan_train_G_256_nrep1": lambda: migan.TorchMIGANGenerator(256, num_kernels=1),
    "migan_train_G_512_nrep1": lambda: migan.TorchMIGANGenerator(512, num_kernels=1),
    "migan_train_G_256": lambda: migan.TorchMIGANGenerator(256, num_kernels=9),
    "migan_train_G_512": lambda: migan.TorchMIGANGenerator(512, num_kernels=9),
    "migan_train_D_256": lambda: TorchMIGANDiscriminator(256),
    "migan_train_D_512": lambda: TorchMIGANDiscriminator(512),
    "comodgan_G_256": lambda: comodgan.TorchCoModGANGenerator(256),
    "comodgan_G_512": lambda: comodgan.TorchCoModGANGenerator(512),
    "comodgan_D_256": lambda: TorchCoModGANDiscriminator(256),
    "comodgan_D_512": lambda: TorchCoModGANDiscriminator(512),
    "comodgan_D_256_default_chbase16384": lambda: TorchCoModGANDiscriminator(
        256, 16384
    ),
    "comodgan_D_512_default_chbase16384": lambda: TorchCoModGANDiscriminator(
        512, 16384
    ),
}
PARAMETERS = {
    "migan_inference_G_256": 5_865_505,
    "migan_inference_G_512": 5_893_158,
    "migan_train_G_256_nrep1": 5_865_505,
    "migan_train_G_512_nrep1": 5_893_158,
    "migan_train_G_256": 52_686_881,
    "migan_train_G_512": 52_935_718,
    "migan_train_D_256": 39_002_835,
    "migan_train_D_512": 39_195_283,
    "comodgan_G_256": 79_177_378,
    "comodgan_G_512": 79_792_231,
    "comodgan_D_256": 28_864_257,
    "comodgan_D_256_default_chbase16384": 24_001_153,
}
# With the constant FIR taps, as the paper counts.
WITH_TAPS = {"migan_inference_G_256": 5_943_617, "migan_inference_G_512": 5_973_366}


@pytest.fixture(autouse=True)
def seeded_single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def on_meta(name):
    with torch.device("meta"):
        return NETWORKS[name]()


def in_float64(network):
    """Return the network with random weights, in evaluation mode."""
    return randomise(network, torch.float64)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_every_key_file_has_a_network():
    assert {path.stem for path in KEYS.glob("*.json")} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_has_the_released_names_and_shapes(name):
    expected = json.loads((KEYS / f"{name}.json").read_text())
    state = on_meta(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    network = on_meta(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", WITH_TAPS)
def test_parameter_count_with_taps(name):
    network = on_meta(name)
    taps = [b for key, b in network.named_buffers() if key.endswith("filter.weight")]
    count = sum(t.numel() for t in [*network.parameters(), *taps])
    assert count == WITH_TAPS[name]


def up_by_formula(x, axis):
    """out[2i] = x[i-1]/4 + 3x[i]/4 and out[2i+1] = 3x[i]/4 + x[i+1]/4."""
    x = x.movedim(axis, -1)
    previous = torch.nn.functional.pad(x, (1, 0))[..., :-1]
    following = torch.nn.functional.pad(x, (0, 1))[..., 1:]
    even, odd = 0.25 * previous + 0.75 * x, 0.75 * x + 0.25 * following
    return torch.stack([even, odd], dim=-1).flatten(-2).movedim(-1, axis)


def test_up_filter_is_the_formula_on_each_axis():
    x = double(2, 3, 6, 6)
    expected = up_by_formula(up_by_formula(x, axis=2), axis=3)
    taps = layers.fir_taps()
    assert_close(layers.fir_up(x, taps, "reference"), expected)
    assert_close(layers.fir_up(x, taps, "efficient"), expected)
    for upsampling in ("reference", "efficient"):
        fused = separable.FusedUpsample(3, 12, upsampling)
        assert_close(fused(x), expected)


def test_filter_const_puts_pixels_at_even_rows_and_columns():
    x = double(1, 2, 3, 3)
    fused = separable.FusedUpsample(2, 6, "reference")
    nearest = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_close(nearest * fused.filter_const, layers.zero_stuff(x))
    assert_close(layers.zero_stuff(x)[:, :, ::2, ::2], x)


def test_down_filter_is_the_adjoint_of_the_up_filter():
    x, y = double(2, 3, 8, 8), double(2, 3, 4, 4)
    taps = layers.fir_taps()
    down, up = layers.fir_down(x, taps), layers.fir_up(y, taps, "reference")
    assert_close((down * y).sum(), (x * up).sum() / 4)


def test_activation_scales_and_clips():
    x = torch.tensor([-1e4, -1.0, 2.0, 1e4])
    gain = 0.5
    expected = [-128.0, -0.2 * math.sqrt(2) * gain, 2 * math.sqrt(2) * gain, 128.0]
    assert_close(layers.lrelu_agc(x, gain), torch.tensor(expected), 1e-6)


@pytest.mark.parametrize("num_kernels", [None, 3])
def test_migan_reference_equals_efficient(num_kernels):
    options = NARROW | {"num_kernels": num_kernels}
    reference = in_float64(migan.TorchMIGANGenerator(**options))
    efficient = migan.TorchMIGANGenerator(**options, upsampling="efficient").double()
    efficient.load_state_dict(reference.state_dict(), strict=True)
    x = double(2, 4, 16, 16)
    image, pyramid = reference(x, pyramid=True)
    other, other_pyramid = efficient(x, pyramid=True)
    assert_close(image, other)
    assert image.shape == (2, 3, 16, 16)
    assert list(pyramid) == [4, 8, 16]
    for r, level in pyramid.items():
        assert level.shape == (2, 3, r, r)
        assert_close(level, other_pyramid[r])


def fuse_by_hand(training):
    """Return the inference form's parameters from a training form's modules."""
    fused = {}
    for name, module in training.named_modules():
        if isinstance(module, separable.SameConv):
            fused[f"{name}.weight"] = module.kernel()
            if module.bias is not None:
                fused[f"{name}.bias"] = module.bias
    for name, value in training.state_dict().items():
        if "noise" in name:
            fused[name.replace(".conv2.noise", ".noise")] = value
    return fused


def test_fused_equals_training_form():
    training = in_float64(migan.TorchMIGANGenerator(**NARROW, num_kernels=3))
    inference = migan.TorchMIGANGenerator(**NARROW).double()
    result = inference.load_state_dict(fuse_by_hand(training), strict=False)
    assert not result.unexpected_keys
    assert all("filter" in key for key in result.missing_keys)
    x = double(2, 4, 16, 16)
    assert_close(inference(x), training(x))
    assert_close(inference(x, noise="none"), training(x, noise="none"))


def test_image_is_the_upsampled_sum_of_the_pyramid():
    network = in_float64(migan.TorchMIGANGenerator(**NARROW))
    image, pyramid = network(double(1, 4, 16, 16), pyramid=True)
    total = pyramid[4]
    for r in (8, 16):
        total = layers.bilinear_up(total) + pyramid[r]
    assert_close(image, total)


def test_efficient_form_takes_other_sizes_with_tiled_noise():
    network = in_float64(migan.TorchMIGANGenerator(**NARROW, upsampling="efficient"))
    assert network(double(1, 4, 20, 36)).shape == (1, 3, 20, 36)
    stored = torch.arange(4).reshape(2, 2)
    expected = torch.tensor([[0, 1, 0], [2, 3, 2], [0, 1, 0]])
    assert torch.equal(layers.tile(stored, 3, 3), expected)


def test_wrong_sizes_and_noise_are_refused():
    reference = migan.TorchMIGANGenerator(**NARROW)
    with pytest.raises(ValueError, match="20x20"):
        reference(torch.zeros(1, 4, 20, 20))
    efficient = migan.TorchMIGANGenerator(**NARROW, upsampling="efficient")
    with pytest.raises(ValueError, match="18x16"):
        efficient(torch.zeros(1, 4, 18, 16))
    with pytest.raises(ValueError, match="constant"):
        reference(torch.zeros(1, 4, 16, 16), noise="constant")


def test_random_noise_differs_and_no_noise_repeats():
    network = in_float64(migan.TorchMIGANGenerator(**NARROW))
    x = double(1, 4, 16, 16)
    assert not torch.equal(network(x, noise="random"), network(x, noise="random"))
    assert torch.equal(network(x, noise="none"), network(x, noise="none"))
    assert not torch.equal(network(x, noise="stored"), network(x, noise="none"))


def test_comodgan_reference_equals_efficient():
    reference = in_float64(comodgan.TorchCoModGANGenerator(**NARROW, **CODES))
    efficient = comodgan.TorchCoModGANGenerator(
        **NARROW, **CODES, upsampling="efficient"
    )
    efficient.double().eval().load_state_dict(reference.state_dict(), strict=True)
    x, z = double(2, 4, 16, 16), double(2, 12)
    image, pyramid = reference(x, z, pyramid=True)
    other, other_pyramid = efficient(x, z, pyramid=True)
    assert_close(image, other)
    assert list(pyramid) == [4, 8, 16]
    for r, level in pyramid.items():
        assert_close(level, other_pyramid[r])


def test_comodgan_truncation_dropout_and_codes():
    network = in_float64(comodgan.TorchCoModGANGenerator(**NARROW, **CODES))
    x, z = double(2, 4, 16, 16), double(2, 12)
    network.mapping.w_avg.copy_(double(10))
    ws = network.mapping(z)
    assert ws.shape == (2, 6, 10)
    average = network.mapping.w_avg
    assert_close(network.mapping(z, 0.5), (0.5 * (average + ws)))
    assert torch.equal(network(x, z), network(x, z))
    assert not torch.equal(network(x, z), network(x, z, truncation=0.5))
    network.train()
    assert not torch.equal(network(x, z), network(x, z))


def modulate_directly(conv, x, style):
    """Compute one kernel per sample, without the style normalisation, which cancels."""
    images = []
    for image, scale in zip(x, conv.affine(style), strict=True):
        kernel = conv.weight * scale[:, None, None]
        kernel = kernel / kernel.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        images.append(conv.convolve(image[None], kernel))
    x = torch.cat(images) + conv.noise_strength * conv.noise_const
    return layers.lrelu_agc(x + conv.bias[:, None, None])


@pytest.mark.parametrize("up", [False, True])
def test_modulated_conv_demodulates_each_sample(up):
    conv = in_float64(comodgan.ModulatedConv(5, 7, 6, size=16 if up else 8, up=up))
    x, style = double(3, 5, 8, 8), double(3, 6)
    expected = modulate_directly(conv, x, style)
    # Only the epsilon inside the demodulation may differ.
    assert_close(conv(x, style, "stored"), expected, 1e-7)


def discriminators():
    return [
        TorchMIGANDiscriminator(**NARROW, num_kernels=2),
        TorchCoModGANDiscriminator(**NARROW),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_discriminator_is_twice_differentiable(index):
    network = in_float64(discriminators()[index])
    x = double(4, 4, 16, 16).requires_grad_()
    logits = network(x)
    assert logits.shape == (4, 1)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    penalty = slope.square().sum()
    penalty.backward()
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert all(torch.isfinite(k.grad).all() for k in kernels)
    assert all(k.grad.abs().sum() > 0 for k in kernels)


@pytest.mark.parametrize("upsampling", ["reference", "efficient"])
def test_generators_are_twice_differentiable_and_keep_float32(upsampling):
    networks = [
        (migan.TorchMIGANGenerator(**NARROW, upsampling=upsampling), ()),
        (migan.TorchMIGANGenerator(**NARROW, num_kernels=2, upsampling=upsampling), ()),
        (
            comodgan.TorchCoModGANGenerator(**NARROW, **CODES, upsampling=upsampling),
            (torch.randn(2, 12),),
        ),
    ]
    for network, codes in networks:
        x = torch.randn(2, 4, 16, 16, requires_grad=True)
        image = network(x, *codes)
        assert image.dtype == torch.float32
        (slope,) = torch.autograd.grad(image.square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        assert torch.isfinite(x.grad).all()


def test_minibatch_std_groups_are_strided():
    x = double(8, 3, 4, 4)
    channel = layers.minibatch_std(x)[:, 3:]
    # Two groups of four: the even and the odd samples.
    for first in (0, 1):
        group = x[first::2]
        variance = group.var(dim=0, unbiased=False)
        expected = torch.sqrt(variance + 1e-8).mean()
        assert_close(channel[first::2], expected.expand(4, 1, 4, 4))
    assert layers.minibatch_std(x[:3]).shape == (3, 4, 4, 4)


def test_minibatch_std_refuses_an_indivisible_batch():
    with pytest.raises(ValueError, match=r"4 .* 6"):
        layers.minibatch_std(torch.zeros(6, 3, 4, 4))


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_any_power_of_two_resolution(resolution):
    options = {"resolution": resolution, "channel_base": 256, "channel_max": 8}
    x = torch.zeros(1, 4, resolution, resolution)
    expected = (1, 3, resolution, resolution)
    assert migan.TorchMIGANGenerator(**options)(x).shape == expected
    teacher = comodgan.TorchCoModGANGenerator(**options, **CODES)
    assert teacher(x, torch.randn(1, 12)).shape == expected
    assert TorchMIGANDiscriminator(**options, num_kernels=1)(x).shape == (1, 1)
    assert TorchCoModGANDiscriminator(**options)(x).shape == (1, 1)
