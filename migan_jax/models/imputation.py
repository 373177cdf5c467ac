"""Learnable feature imputation (Hukkelas et al. 2020): generator and discriminator.

Each pixel of a feature map has a certainty: 1 where it is known, about 0 where nothing
supports it. An imputed convolution (section 3.1, equations 3 to 5) first replaces
uncertain features by estimates from the certain ones around them. The output is a sum
of images of all resolutions (section 3.3). Images are in [-1, 1] and 0 in holes.

The networks of the ladder's rows A to D grow instead: training starts with the lowest
levels and fades in one more at a time (Karras et al. 2018).

There may be keypoints, such as those of faces. Dense layers turn their coordinates into
feature maps ("scalars"), or each is a map with a single 1 ("maps").
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import Cost, num_elements, num_pixels
from migan_jax.models.layers import (
    Dense,
    EqualisedConv,
    add_bias,
    constant,
    normal,
)
from migan_jax.ops.activation import NEGATIVE_SLOPE
from migan_jax.ops.certainty import convolve_certainty, impute, weigh
from migan_jax.ops.conv import conv3x3, conv_pointwise, conv_to_float32
from migan_jax.ops.partition import split_images
from migan_jax.ops.precision import at_least_float32, broadcast_like, compute_dtype

ImputationForm = Literal["code", "paper"]
Pose = Literal["scalars", "maps"]

SUPPORT_EPSILON = 0.01  # added to what features and estimates are divided by
MIN_CERTAINTY = 1e-6  # of a pixel that nothing supports
FIRST_SIDE = 8  # resolution at which growth starts
POSE_CHANNELS = 16  # of the generator's feature maps of keypoints, at 4 pixels
POSE_SIDE = 32  # of the discriminator's feature map of keypoints


class FeatureMap(NamedTuple):
    """A feature map [N, H, W, C] and its certainty [N, H, W], at least float32.

    Networks of plain convolutions have no certainty.
    """

    x: jax.Array
    certainty: jax.Array | None


class ImputationGenerator(nn.Module):
    """Complete images: concat(image without its hole, mask), [N, H, W, 4].

    It also takes latents z, [N, 4, 4, latents], and keypoints [N, points, 2], (x, y) in
    [0, 1]. Returns the output [N, H, W, 3], and {resolution: rgb}, each level's to-RGB
    output.

    Attributes:
      imputes: whether convolutions are imputed; else they are plain ones.
      form: of the imputed convolutions: as in the authors' "code", or as in the
        "paper", without biases and with large estimators at all levels.
      weighted_down: halve feature maps by averages that are weighted by certainty.
      sums: the output is a sum of all levels' images; else it is the highest level's.
      grows: the network grows, or grew. It has no sum.
      smallest: of a growing network, the resolution of its lowest input and output
        layers. The authors' networks keep two, and so start at half the resolution.
      grown: its current resolution, at which it takes images; None: `resolution`.
      fades: whether its inputs and outputs at half that resolution are mixed in.
    """

    resolution: int = 256
    channel_base: int = 8192
    channel_max: int = 256
    latents: int = 32
    points: int = 0
    pose: Pose = "scalars"
    imputes: bool = True
    form: ImputationForm = "code"
    weighted_down: bool = False
    sums: bool = True
    grows: bool = False
    smallest: int = FIRST_SIDE
    grown: int | None = None
    fades: bool = False
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        side, low = self.resolution, LOWEST_RESOLUTION
        shapes = [(1, side, side, 4), (1, low, low, self.latents)]
        shapes += [(1, self.points, 2)] if self.points else []
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    @nn.compact
    def __call__(
        self, x: jax.Array, z: jax.Array, points: jax.Array | None = None
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        side, heads = _growth(self)
        factor = side // LOWEST_RESOLUTION
        if x.ndim != 4 or x.shape[3] != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"The generator takes [N, H, W, 4] with H and W divisible by {factor}, "
                f"not {list(x.shape)}."
            )
        dtype = compute_dtype(self.dtype, x)
        mask = at_least_float32(x[..., 3])
        features = FeatureMap(x[..., :3].astype(dtype), mask)
        if not self.imputes:
            planes = x[..., :3], mask[..., None], 1 - mask[..., None]
            features = FeatureMap(jnp.concatenate(planes, axis=-1).astype(dtype), None)
        fade = None
        if self.grows:
            fade = self.variable("stats", "fade", lambda: jnp.ones(())).value
        sizes = side, self.channel_base, self.channel_max, self.form
        encoder = Encoder(*sizes, self.weighted_down, self.remat, name="encoder")
        decoder = Decoder(*sizes, self.pose, self.remat, name="decoder")
        skips = encoder(features, heads, fade)
        is_sum = self.sums and not self.grows
        heads = levels(side) if is_sum else heads
        images = decoder(skips, z.astype(dtype), points, heads, fade)
        total, *others = images.values()  # from the lowest level
        for image in others:
            up = double(total)
            total = up + image if is_sum else _mix(up, image, fade)
        return total / len(images) if is_sum else total, images


class ImputationDiscriminator(nn.Module):
    """Score images: concat(image, image without its hole, mask), [N, H, W, 7].

    Takes the keypoints, too, and the share of the newest level in a growing network.
    Returns [N, 1]. Fields are as those of the generator, whose channels it multiplies.
    """

    resolution: int = 256
    channel_base: int = 8192
    channel_max: int = 256
    points: int = 0
    pose: Pose = "scalars"
    shortcuts: bool = True
    grows: bool = False
    smallest: int = FIRST_SIDE
    grown: int | None = None
    fades: bool = False
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        shapes = [(1, self.resolution, self.resolution, 7)]
        shapes += [(1, self.points, 2)] if self.points else []
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    @nn.nowrap
    def channels(self, r: int) -> int:
        """The generator's channels times the square root of 2, a multiple of 8."""
        width = channels_at(r, self.channel_base, self.channel_max)
        return 8 * math.ceil(math.sqrt(2) * width / 8)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        points: jax.Array | None = None,
        fade: jax.Array | float = 1.0,
    ) -> jax.Array:
        side, heads = _growth(self)
        run = _make_run(self.remat)
        images = x.astype(compute_dtype(self.dtype, x))
        features = None
        for r in reversed(levels(side)[1:]):
            bank = self._bank(points, r, side, fade)
            banks = 0 if bank is None else bank.shape[-1]
            widths = self.channels(r), self.channels(r // 2), banks
            block = DiscriminatorBlock(*widths, self.shortcuts, name=f"b{r}")
            if r in heads:
                read = run(DiscriminatorBlock.read, block, images)
                features = read if features is None else _mix(read, features, fade)
            features = run(DiscriminatorBlock.__call__, block, features, bank)
            images = halve(images)
        r = LOWEST_RESOLUTION
        bank = self._bank(points, r, side, fade)
        banks = 0 if bank is None else bank.shape[-1]
        top = DiscriminatorTop(self.channels(r), banks, name=f"b{r}")
        features = run(DiscriminatorTop.__call__, top, features, bank)
        return Dense(1, name="output")(at_least_float32(features))

    def _bank(
        self, points: jax.Array | None, r: int, side: int, fade: jax.Array | float
    ) -> jax.Array | None:
        """Return the feature maps of the keypoints that a level gets, if any."""
        if not self.points:
            return None
        if self.pose == "maps":
            is_new = self.fades and r == side
            return _fading_maps(points, r, r, fade if is_new else None)
        if r != min(POSE_SIDE, self.resolution):
            return None
        return PoseLayers((64, r * r), name="pose")(points).reshape(-1, r, r, 1)


def _growth(network: Any) -> tuple[int, list[int]]:
    """Return a network's current resolution, and those of its inputs and outputs.

    When it is initialised, all its layers are used.
    """
    side = network.resolution
    if not network.grows:
        return side, [side]
    if network.is_initializing():
        return side, [r for r in levels(side) if r >= network.smallest]
    side = network.grown or side
    return side, [side // 2, side] if network.fades else [side]


def _make_run(remat: bool) -> Callable[..., Any]:
    """Make a function that runs a method of a layer, with images split over devices."""

    def call(method: Callable[..., Any], layer: nn.Module, *inputs: Any) -> Any:
        def split(x: jax.Array) -> jax.Array:
            return split_images(x) if x.ndim == 4 else x

        def run(layer: nn.Module, *inputs: Any) -> Any:
            return method(layer, *jax.tree.map(split, inputs))

        return (nn.remat(run) if remat else run)(layer, *inputs)

    return call


# The generator.


class Encoder(nn.Module):
    """From the image to 4 pixels. Returns the features of all levels."""

    side: int
    channel_base: int
    channel_max: int
    form: ImputationForm
    weighted_down: bool
    remat: bool

    @nn.compact
    def __call__(
        self, inputs: FeatureMap, heads: list[int], fade: jax.Array | None
    ) -> dict[int, FeatureMap]:
        run = _make_run(self.remat)
        outputs: dict[int, FeatureMap] = {}
        features = None
        for r in reversed(levels(self.side)):
            channels, below = (
                channels_at(size, self.channel_base, self.channel_max)
                for size in (r, max(r // 2, LOWEST_RESOLUTION))
            )
            block = EncoderBlock(channels, below, r, self.form, name=f"b{r}")
            if r in heads:
                new = run(EncoderBlock.read, block, inputs)
                if features is not None:
                    new = jax.tree.map(lambda a, b: _mix(a, b, fade), new, features)
                features = new
            features = outputs[r] = run(EncoderBlock.__call__, block, features)
            if r > LOWEST_RESOLUTION:
                features, inputs = self._halve(features), self._halve(inputs)
        return outputs

    def _halve(self, features: FeatureMap) -> FeatureMap:
        x, certainty = features
        if certainty is None:
            return FeatureMap(halve(x), None)
        below = halve(certainty[..., None])[..., 0]
        if not self.weighted_down:
            return FeatureMap(halve(x), below)
        return FeatureMap(
            weigh(halve(weigh(x, certainty)), 1 / (below + SUPPORT_EPSILON)), below
        )


class EncoderBlock(nn.Module):
    """Two convolutions of a level; `read` is its input layer, if it has one."""

    channels: int
    below: int  # channels of the level below
    resolution: int
    form: ImputationForm

    def setup(self) -> None:
        self.from_rgb = ConvLayer(self.channels, 1, None, self.form)
        self.conv0 = ConvLayer(self.channels, 3, self.resolution, self.form)
        self.conv1 = ConvLayer(self.below, 3, self.resolution, self.form)

    def read(self, inputs: FeatureMap) -> FeatureMap:
        return self.from_rgb(inputs)

    def __call__(self, features: FeatureMap) -> FeatureMap:
        return self.conv1(self.conv0(features))


class Decoder(nn.Module):
    """From 4 pixels to the images of all levels that have an output, by resolution."""

    side: int
    channel_base: int
    channel_max: int
    form: ImputationForm
    pose: Pose
    remat: bool

    @nn.compact
    def __call__(
        self,
        skips: dict[int, FeatureMap],
        z: jax.Array,
        points: jax.Array | None,
        heads: list[int],
        fade: jax.Array | None,
    ) -> dict[int, jax.Array]:
        run, lowest = _make_run(self.remat), LOWEST_RESOLUTION
        features = skips[lowest]
        bottom = features.x.shape[1:3]
        banks = [_enlarge(z, *bottom)]
        if points is not None and self.pose == "scalars":
            layers = PoseLayers((128, POSE_CHANNELS * lowest**2), name="pose")
            bank = layers(points).reshape(-1, POSE_CHANNELS, lowest, lowest)
            banks.append(_enlarge(bank.transpose(0, 2, 3, 1).astype(z.dtype), *bottom))
        images: dict[int, jax.Array] = {}
        for r in levels(self.side):
            channels = channels_at(r, self.channel_base, self.channel_max)
            block = DecoderBlock(channels, r, self.form, name=f"b{r}")
            if r > lowest:
                features, banks = run(DecoderBlock.join, block, features, skips[r]), []
            if points is not None and self.pose == "maps":
                is_new = len(heads) > 1 and r == self.side
                size = features.x.shape[1:3]
                maps = _fading_maps(points, *size, fade if is_new else None)
                banks = [*banks, maps.astype(z.dtype)]
            features = run(DecoderBlock.__call__, block, features, banks)
            if r in heads:
                images[r] = run(DecoderBlock.paint, block, features.x)
        return images


class DecoderBlock(nn.Module):
    """Two convolutions of a level, after a skip connection; `paint` is its to-RGB."""

    channels: int
    resolution: int
    form: ImputationForm

    def setup(self) -> None:
        self.skip = SkipConnection()
        self.conv0 = ConvLayer(None, 3, self.resolution, self.form)
        self.conv1 = ConvLayer(self.channels, 3, self.resolution, self.form)
        self.to_rgb = ToRGB()

    def join(self, below: FeatureMap, skip: FeatureMap) -> FeatureMap:
        """Enlarge the level below, and merge it with the encoder's features."""
        x, certainty = below
        if certainty is not None:
            certainty = double(certainty[..., None])[..., 0]
        return self.skip(FeatureMap(double(x), certainty), skip)

    def __call__(self, features: FeatureMap, banks: list[jax.Array]) -> FeatureMap:
        x = jnp.concatenate([features.x, *banks], axis=-1) if banks else features.x
        return self.conv1(self.conv0(FeatureMap(x, features.certainty)))

    def paint(self, x: jax.Array) -> jax.Array:
        return self.to_rgb(x)


# The generator's layers.


class ConvLayer(nn.Module):
    """Convolution, leaky ReLU and pixel norm; imputed if features have a certainty.

    `resolution` is that of its level; None for layers that read the image.
    """

    features: int | None  # None: as many as the input has
    size: int
    resolution: int | None
    form: ImputationForm

    @nn.compact
    def __call__(self, features: FeatureMap) -> FeatureMap:
        x, certainty = features
        if certainty is not None:
            is_small = self.form == "code" and self.resolution in (4, 8)
            estimator = Estimator(3 if is_small else 5, self.form, name="estimator")
            x = estimator(x, certainty)
            if self.size > 1:
                propagation = Propagation(self.size, self.form, name="certainty")
                certainty = propagation(certainty)
        y = _equalised(self, x, self.features or x.shape[-1], self.size)
        return FeatureMap(_activate(y), certainty)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        ((x, _),) = args
        products = self.size**2 * x.shape[-1] * num_elements(out)
        return Cost(products, elementwise=4 * num_elements(out))


class Estimator(nn.Module):
    """Impute uncertain features (equations 3 and 4)."""

    size: int
    form: ImputationForm

    @nn.compact
    def __call__(self, x: jax.Array, certainty: jax.Array) -> jax.Array:
        c = x.shape[-1]
        # The equalised rate as in the code: it divides by the number of channels twice.
        scale = math.sqrt(c) / self.size if self.form == "code" else 1 / self.size
        init = normal if self.form == "code" else small_normal(scale)
        weight = self.param("weight", init, (self.size, self.size, 1, c))
        if self.form == "paper":
            return impute(x, certainty, weight, None, 0.0)
        bias = self.param("bias", constant(0), (c,))
        return impute(x, certainty, weight * scale, bias, SUPPORT_EPSILON)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        window = 2 * self.size * num_pixels(out)  # the mean certainty
        return Cost(self.size**2 * num_elements(out), window, 0, 4 * num_elements(out))


class Propagation(nn.Module):
    """The certainty after a convolution (equation 5).

    The code rescales the sigmoid, so that a pixel without support has almost none.
    """

    size: int
    form: ImputationForm

    @nn.compact
    def __call__(self, certainty: jax.Array) -> jax.Array:
        weight = self.param("weight", constant(1), (self.size, self.size, 1, 1))
        updated = nn.sigmoid(convolve_certainty(certainty, weight))
        if self.form == "paper":
            return updated
        return jnp.clip(2 * (updated - 0.5) + MIN_CERTAINTY, 0, 1)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        return Cost(self.size**2 * num_elements(out))


class SkipConnection(nn.Module):
    """Merge features of decoder and encoder: by certainty, or with a 1x1 convolution.

    Their weights are certainties times a learned factor each, which is not negative.
    """

    @nn.compact
    def __call__(self, decoder: FeatureMap, encoder: FeatureMap) -> FeatureMap:
        if decoder.certainty is None:
            x = jnp.concatenate([decoder.x, encoder.x], axis=-1)
            return FeatureMap(_activate(_equalised(self, x, x.shape[-1] // 2, 1)), None)
        weights = [
            nn.relu(self.param(name, constant(1), ())) * features.certainty
            for name, features in (("encoder", encoder), ("decoder", decoder))
        ]
        share = weights[0] / (weights[0] + weights[1] + 1e-8)
        return FeatureMap(
            weigh(encoder.x, share) + weigh(decoder.x, 1 - share),
            share * encoder.certainty + (1 - share) * decoder.certainty,
        )

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x, certainty), _ = args
        if certainty is not None:
            return Cost(elementwise=2 * num_elements(out))
        return Cost(2 * x.shape[-1] * num_elements(out), elementwise=num_elements(out))


class ToRGB(nn.Module):
    """Plain 1x1 convolution with a float32 result."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _equalised(self, x, 3, 1, conv_to_float32)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(x.shape[-1] * num_elements(out), elementwise=num_elements(out))


def small_normal(deviation: float) -> Callable[..., jax.Array]:
    """Return an initialiser from N(0, deviation^2)."""
    return lambda key, shape: deviation * normal(key, shape)


def _equalised(
    layer: nn.Module,
    x: jax.Array,
    features: int,
    size: int,
    pointwise: Callable[..., jax.Array] = conv_pointwise,
) -> jax.Array:
    """Convolve with a layer's weight and bias, at the equalised learning rate."""
    shape = size, size, x.shape[-1], features
    weight = layer.param("weight", normal, shape) / math.sqrt(math.prod(shape[:3]))
    y = pointwise(x, weight) if size == 1 else conv3x3(x, weight)
    return add_bias(y, layer.param("bias", constant(0), (features,)))


def _activate(x: jax.Array) -> jax.Array:
    """Leaky ReLU and pixel norm: a mean square of 1 over channels."""
    x = nn.leaky_relu(x, NEGATIVE_SLOPE)
    square = jnp.mean(at_least_float32(x) ** 2, axis=-1, keepdims=True)
    return x * broadcast_like(jax.lax.rsqrt(square + 1e-7), x)


# The discriminator.


class DiscriminatorBlock(nn.Module):
    """Two convolutions of a level, with a shortcut; `read` is its input layer."""

    channels: int
    below: int  # channels of the level below
    banks: int  # channels of what is concatenated
    has_shortcut: bool

    def setup(self) -> None:
        self.from_rgb = EqualisedConv(self.channels, 1)
        self.conv0 = EqualisedConv(self.channels + self.banks)
        self.conv1 = EqualisedConv(self.below)
        if self.has_shortcut:
            self.shortcut = EqualisedConv(self.below, 1)

    def read(self, images: jax.Array) -> jax.Array:
        return nn.leaky_relu(self.from_rgb(images), NEGATIVE_SLOPE)

    def __call__(self, x: jax.Array, bank: jax.Array | None) -> jax.Array:
        x = _append(x, bank)
        y = nn.leaky_relu(self.conv0(x), NEGATIVE_SLOPE)
        y = nn.leaky_relu(self.conv1(y), NEGATIVE_SLOPE)
        if self.has_shortcut:
            y = (y + self.shortcut(x)) * math.sqrt(0.5)
        return halve(y)


class DiscriminatorTop(nn.Module):
    """The level of 4 pixels: [N, 4, 4, C] -> [N, channels]."""

    channels: int
    banks: int

    @nn.compact
    def __call__(self, x: jax.Array, bank: jax.Array | None) -> jax.Array:
        x = _append(x, bank)
        x = nn.leaky_relu(
            EqualisedConv(self.channels + self.banks, name="conv0")(x), NEGATIVE_SLOPE
        )
        # A 4x4 convolution without padding has a single output pixel.
        return nn.leaky_relu(Collapse(self.channels, name="conv1")(x), NEGATIVE_SLOPE)


class Collapse(nn.Module):
    """Convolution as large as its input: [N, K, K, C] -> [N, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = *x.shape[1:], self.features
        scale = 1 / math.sqrt(math.prod(shape[:3]))
        kernel = self.param("weight", normal, shape).reshape(1, 1, -1, self.features)
        y = conv_pointwise(x.reshape(len(x), 1, 1, -1), kernel * scale)[:, 0, 0]
        return add_bias(y, self.param("bias", constant(0), (self.features,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(num_elements(x) * self.features)


# Both networks.


class PoseLayers(nn.Module):
    """Two dense layers that read the coordinates of keypoints."""

    widths: tuple[int, int]

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        x = (2 * points - 1).reshape(len(points), -1)
        for index, width in enumerate(self.widths):
            x = nn.leaky_relu(Dense(width, name=f"fc{index}")(x), NEGATIVE_SLOPE)
        return x


def make_maps(points: jax.Array, height: int, width: int) -> jax.Array:
    """Return a map for each keypoint, 1 at its pixel: [N, height, width, points]."""

    def mark(coordinates: jax.Array, size: int) -> jax.Array:
        pixel = jnp.clip(jnp.floor(coordinates * size), 0, size - 1)[:, None]
        return pixel == jnp.arange(size, dtype=pixel.dtype)[None, :, None]

    rows, columns = mark(points[..., 1], height), mark(points[..., 0], width)
    return (rows[:, :, None] & columns[:, None]).astype(points.dtype)


def _fading_maps(
    points: jax.Array, height: int, width: int, fade: jax.Array | float | None
) -> jax.Array:
    """Return maps that fade in with their level; None: it has been there before."""
    maps = make_maps(points, height, width)
    if fade is None:
        return maps
    return _mix(double(make_maps(points, height // 2, width // 2)), maps, fade)


def _append(x: jax.Array, bank: jax.Array | None) -> jax.Array:
    if bank is None:
        return x
    return jnp.concatenate([x, bank.astype(x.dtype)], axis=-1)


def halve(x: jax.Array) -> jax.Array:
    """Average 2x2 pixels."""
    n, h, w, c = x.shape
    return jnp.mean(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def double(x: jax.Array) -> jax.Array:
    """Repeat every pixel 2x2 times."""
    n, h, w, c = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return repeated.reshape(n, 2 * h, 2 * w, c)


def _enlarge(x: jax.Array, height: int, width: int) -> jax.Array:
    """Repeat pixels up to this size, that of networks used on larger images."""
    rows = jnp.arange(height) * x.shape[1] // height
    columns = jnp.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns] if x.shape[1:3] != (height, width) else x


def _mix(old: jax.Array, new: jax.Array, share: jax.Array | float) -> jax.Array:
    """Interpolate to a share of `new`."""
    before, after = at_least_float32(old), at_least_float32(new)
    return (before + (after - before) * share).astype(new.dtype)
