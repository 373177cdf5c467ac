"""Learnable feature imputation in PyTorch, written from its facts alone: both networks
of every row of the ladder, losses, gradients of both players.

  python benchmarks/imputation_torch.py --golden=tests/golden

The script compares layers with the authors' arrays in imputation_layers.npz, names and
shapes with released ones in imputation_*.json, and counts of parameters. A folder
without these files leaves only the counts and identities.

Images are NCHW in [-1, 1]. A mask is 1 where pixels are known; `c` is the certainty of
features, [N, 1, H, W] in [0, 1]. Equations and tables are those of the paper.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Features = tuple[Tensor, Tensor]  # features and their certainty

PIXEL_NORM_EPSILON = 1e-7
ESTIMATE_EPSILON = 0.01  # of imputation and of weighted averages
CERTAINTY_FLOOR = 1e-6
MERGE_EPSILON = 1e-8
PENALTY_WEIGHT = 10 * 16  # lambda, and an update every 16 steps of the discriminator
DRIFT_WEIGHT = 0.001
KEYPOINTS = 7


def channel_table(width: int, resolution: int) -> dict[int, int]:
    """Return a network's width at every resolution."""
    sizes = (2**k for k in range(2, resolution.bit_length()))
    return {r: width * 32 // max(r, 32) for r in sizes}


def discriminator_width(channels: int) -> int:
    return 8 * math.ceil(math.sqrt(2) * channels / 8)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def pixel_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPSILON).sqrt()


def activate(features: Features) -> Features:
    x, c = features
    return pixel_norm(leaky(x)), c


def up2(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def halve_features(x: Tensor, c: Tensor, down: str) -> Features:
    """Average plainly, or weighted by certainty (`down` is "plain" or "weighted")."""
    if down == "plain":
        return halve(x), halve(c)
    return halve(x * c) / (halve(c) + ESTIMATE_EPSILON), halve(c)


def lerp(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) * old + alpha * new


def paste(output: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
    """Keep known pixels (eq. 12)."""
    return output * (1 - mask) + condition * mask


def fade_images(images: Tensor, alpha: float) -> Tensor:
    """Take real images from half the resolution (alpha 0) to all of it (1)."""
    return lerp(up2(halve(images)), images, alpha)


def fade_masks(masks: Tensor, alpha: float) -> Tensor:
    return (fade_images(masks, alpha) >= 0.5).to(masks.dtype)


def one_hot_maps(points: Tensor, size: int) -> Tensor:
    """Draw x, y pairs in [0, 1] as one pixel each: [N, 2K] to [N, K, size, size]."""
    places = (points.unflatten(1, (-1, 2)) * size).long().clamp(0, size - 1)
    x, y = (F.one_hot(places[..., k], size) for k in range(2))
    return (y[..., :, None] * x[..., None, :]).to(points.dtype)


def lookup(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class Linear(nn.Module):
    """Equalised: weights are drawn from N(0, 1) and divided by sqrt(inputs) in use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class Conv(nn.Module):
    """Equalised: weights are divided by sqrt(fan-in) in use. Certainty passes by."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, padding: int | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._padding = kernel // 2 if padding is None else padding

    def convolve(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, weight, self.bias, padding=self._padding)

    def forward(self, features: Features) -> Features:
        x, c = features
        return self.convolve(x), c


class Filter(nn.Module):
    """The weights of a filter that its owner applies."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)


class IConv(Conv):
    """Impute uncertain features from their neighbours, then convolve (eq. 4, 5).

    `form` is "code" or "paper". Where nothing near is known, the paper's estimate would
    be 0 / 0, and is 0 here.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, window: int, form: str = "code"
    ) -> None:
        super().__init__(inputs, outputs, kernel)
        self._window, self._form = window, form
        # The paper's form has no gain for inputs, so its weights start small.
        weight = torch.randn(inputs, 1, window, window)
        if form == "code":
            estimator = Filter(weight, torch.zeros(inputs))
        else:
            estimator = Filter(weight / window)
        self.expected_value_updater = lookup(input_updater=estimator)
        if kernel > 1:
            self.mask_updater = Filter(torch.ones(1, 1, kernel, kernel))

    def estimate(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the features to expect at each place (eq. 4)."""
        own = self.expected_value_updater["input_updater"]
        pad = self._window // 2
        scale = 1.0
        if self._form == "code":
            scale = math.sqrt(x.shape[1]) / self._window
        total = F.conv2d(
            x * c, own.weight * scale, own.bias, padding=pad, groups=x.shape[1]
        )
        known = F.avg_pool2d(c, self._window, stride=1, padding=pad)
        if self._form == "code":
            return total / (known + ESTIMATE_EPSILON)
        supported = known > 0
        return torch.where(supported, total / known.where(supported, 1), 0)

    def update(self, c: Tensor) -> Tensor:
        """Return the certainty of the outputs (eq. 5)."""
        if self.weight.shape[2] == 1:
            return c
        c = torch.sigmoid(F.conv2d(c, self.mask_updater.weight, padding="same"))
        if self._form == "paper":
            return c
        return (2 * (c - 0.5) + CERTAINTY_FLOOR).clamp(0, 1)

    def forward(self, features: Features) -> Features:
        x, c = features
        imputed = c * x + (1 - c) * self.estimate(x, c)
        return self.convolve(imputed), self.update(c)


class ConvSkip(nn.Module):
    """Merge decoder and encoder by a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = lookup(layers=nn.ModuleList([Conv(2 * channels, channels, 1)]))

    def forward(self, decoder: Features, encoder: Features) -> Features:
        both = torch.cat([decoder[0], encoder[0]], dim=1)
        return activate(self.conv["layers"][0]((both, decoder[1])))


class ImputationSkip(nn.Module):
    """Average decoder and encoder by certainty; beta0 weights the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.beta0 = nn.Parameter(torch.ones(()))
        self.beta1 = nn.Parameter(torch.ones(()))

    def forward(self, decoder: Features, encoder: Features) -> Features:
        for_encoder = F.relu(self.beta0) * encoder[1]
        for_decoder = F.relu(self.beta1) * decoder[1]
        gate = for_encoder / (for_encoder + for_decoder + MERGE_EPSILON)
        x, c = (
            gate * e + (1 - gate) * d for d, e in zip(decoder, encoder, strict=True)
        )
        return x, c


class PoseNetwork(nn.Module):
    """Turn points into channels of a small image."""

    def __init__(self, points: int, hidden: int, channels: int, size: int) -> None:
        super().__init__()
        self._shape = (channels, size, size)
        first, second = Linear(points, hidden), Linear(hidden, channels * size**2)
        self.pose_preprocessor = nn.ModuleDict({"1": first, "3": second})

    def forward(self, points: Tensor) -> Tensor:
        x = 2 * points - 1
        for layer in self.pose_preprocessor.values():
            x = leaky(layer(x))
        return x.unflatten(1, self._shape)


class Generator(nn.Module):
    """Any row's generator.

    `channels` has the width at each resolution up to the top one. `conv` is "conv" or
    "iconv", of the given `form` ("code" or "paper"); `down`, "plain" or "weighted",
    halves features. Without `growing`, images of all resolutions are summed (row E).
    With it, the top resolution may be faded in (rows A to D). `pose` is "scalar" or
    "one_hot".
    """

    def __init__(
        self,
        resolution: int,
        channels: dict[int, int],
        conv: str = "iconv",
        keypoints: int = 0,
        z_channels: int = 32,
        pose_channels: int = 16,
        *,
        form: str = "code",
        down: str = "plain",
        pose: str = "scalar",
        growing: bool = False,
    ) -> None:
        super().__init__()
        self._conv, self._form, self._down = conv, form, down
        self._sizes = [2**k for k in range(2, resolution.bit_length())]
        self._one_hot = keypoints > 0 and pose == "one_hot"
        self._growing = growing
        top = resolution
        self.from_rgb = nn.ModuleList([self._from_rgb(channels[top])])
        if growing:
            self.old_from_rgb = nn.ModuleList([self._from_rgb(channels[top // 2])])
            self.to_rgb = Conv(channels[top], 3, 1)
            self.old_to_rgb = Conv(channels[top // 2], 3, 1)
        else:
            convolutions = {f"{r}": Conv(channels[r], 3, 1) for r in self._sizes}
            self.rgb_convolutions = nn.ModuleDict(convolutions)
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        for r in self._sizes:
            outer, inner = channels[r], channels[max(r // 2, 4)]
            self.encoder[f"basic_block{r}"] = self._block(r, outer, inner)
            inputs = inner
            if r == 4:
                inputs += z_channels
                inputs += pose_channels if keypoints and not self._one_hot else 0
            else:
                skip = ImputationSkip() if conv == "iconv" else ConvSkip(inner)
                self.decoder[f"skip_connection{r}"] = skip
            inputs += keypoints if self._one_hot else 0
            self.decoder[f"basic_block{r}"] = self._block(r, inputs, outer)
        if keypoints and not self._one_hot:
            network = PoseNetwork(2 * keypoints, 128, pose_channels, 4)
            self.decoder["pose_fcnn"] = network

    def _make(self, inputs: int, outputs: int, kernel: int, window: int) -> Conv:
        if self._conv == "conv":
            return Conv(inputs, outputs, kernel)
        window = 5 if self._form == "paper" else window
        return IConv(inputs, outputs, kernel, window, self._form)

    def _from_rgb(self, outputs: int) -> Conv:
        return self._make(3 if self._conv == "iconv" else 5, outputs, 1, 5)

    def _block(self, resolution: int, inputs: int, outputs: int) -> nn.ModuleDict:
        window = 3 if resolution <= 8 else 5
        first = self._make(inputs, inputs, 3, window)
        second = self._make(inputs, outputs, 3, window)
        return lookup(layers=nn.ModuleDict({"0": first, "3": second}))

    def forward(
        self,
        condition: Tensor,
        mask: Tensor,
        z: Tensor,
        points: Tensor | None = None,
        alpha: float = 1.0,
        intermediates: bool = False,
    ) -> Any:
        """Complete masked images; return outputs before pasting.

        `z` is [N, channels, 4, 4] and `points` [N, 2K] in [0, 1]. With `intermediates`,
        also return features after blocks ("encoder", "decoder") and images by size.
        """
        encoded = self._encode(condition, mask, alpha)
        decoded = self._decode(encoded, z, points)
        if self._growing:
            top = self._sizes[-1]
            image = self.to_rgb.convolve(decoded[top][0])
            images = {top: image}
            if alpha < 1:
                old = images[top // 2] = self.old_to_rgb.convolve(decoded[top // 2][0])
                image = lerp(up2(old), image, alpha)
        else:
            image, images = torch.zeros_like(condition[..., :2, :2]), {}
            for r in self._sizes:
                new = self.rgb_convolutions[f"{r}"].convolve(decoded[r][0])
                image = images[r] = up2(image) + new
            image = image / len(images)
        if not intermediates:
            return image
        return image, {"encoder": encoded, "decoder": decoded, "images": images}

    def _encode(
        self, condition: Tensor, mask: Tensor, alpha: float
    ) -> dict[int, Features]:
        x = condition
        if self._conv == "conv":
            x = torch.cat([condition, mask, 1 - mask], dim=1)
        given = x, mask
        features = activate(self.from_rgb[0](given))
        top = self._sizes[-1]
        encoded = {}
        for r in reversed(self._sizes):
            features = encoded[r] = self._through(self.encoder, r, features)
            if r > 4:
                features = halve_features(*features, self._down)
            if r == top and alpha < 1:
                old = self.old_from_rgb[0](halve_features(*given, self._down))
                pairs = zip(activate(old), features, strict=True)
                features = tuple(lerp(o, new, alpha) for o, new in pairs)
        return encoded

    def _decode(
        self, encoded: dict[int, Features], z: Tensor, points: Tensor | None
    ) -> dict[int, Features]:
        x, c = encoded[4]
        x = torch.cat([x, z], dim=1)
        if "pose_fcnn" in self.decoder:
            x = torch.cat([x, self.decoder["pose_fcnn"](points)], dim=1)
        decoded = {}
        for r in self._sizes:
            if r > 4:
                skip = self.decoder[f"skip_connection{r}"]
                x, c = skip((up2(x), up2(c)), encoded[r])
            if self._one_hot:
                x = torch.cat([x, one_hot_maps(points, r)], dim=1)
            x, c = decoded[r] = self._through(self.decoder, r, (x, c))
        return decoded

    def _through(
        self, half: nn.ModuleDict, resolution: int, features: Features
    ) -> Features:
        for layer in half[f"basic_block{resolution}"]["layers"].values():
            features = activate(layer(features))
        return features


class Discriminator(nn.Module):
    """Any row's discriminator; `channels` is the generator's table.

    `residual` adds shortcuts (row E). With `pose` "scalar" points become one map at
    `pose_resolution`, and with "one_hot" one map each at every resolution.
    """

    def __init__(
        self,
        resolution: int,
        channels: dict[int, int],
        keypoints: int = 0,
        pose_resolution: int = 32,
        *,
        pose: str = "scalar",
        residual: bool = True,
        growing: bool = False,
        inputs: int = 7,
    ) -> None:
        super().__init__()
        self._sizes = [2**k for k in range(resolution.bit_length() - 1, 1, -1)]
        self._one_hot = keypoints > 0 and pose == "one_hot"
        self._pose_resolution = pose_resolution
        widths = {r: discriminator_width(channels[r]) for r in self._sizes}
        self.layers = nn.ModuleDict()
        names = ("from_rgb", "old_from_rgb")[: 1 + growing]
        for name, r in zip(names, self._sizes, strict=False):
            first = nn.ModuleList([Conv(inputs, widths[r], 1)])
            self.layers[name] = lookup(conv=lookup(layers=first))
        for r in self._sizes:
            taken, outputs = widths[r], widths[max(r // 2, 4)]
            if self._one_hot:
                taken += keypoints
            elif keypoints and r == pose_resolution:
                network = PoseNetwork(2 * keypoints, 64, 1, r)
                self.layers["pose_fcnn"] = network
                taken += 1
            last = Conv(taken, outputs, 3) if r > 4 else Conv(taken, outputs, 4, 0)
            pair = nn.ModuleDict({"0": Conv(taken, taken, 3), "2": last})
            block = self.layers[name_of_block(r)] = lookup(layers=pair)
            if residual and r > 4:
                block["residual_conv"] = Conv(taken, outputs, 1)
        self.output_layer = Linear(widths[4], 1)

    def forward(
        self,
        image: Tensor,
        condition: Tensor,
        mask: Tensor,
        points: Tensor | None = None,
        alpha: float = 1.0,
    ) -> Tensor:
        """Return the scores [N] of completed or real images."""
        given = torch.cat([image, condition, mask], dim=1)
        x = self._from_rgb("from_rgb", given)
        for r in self._sizes:
            if self._one_hot:
                x = torch.cat([x, one_hot_maps(points, r)], dim=1)
            elif "pose_fcnn" in self.layers and r == self._pose_resolution:
                x = torch.cat([x, self.layers["pose_fcnn"](points)], dim=1)
            block = self.layers[name_of_block(r)]
            shortcut = None
            if "residual_conv" in block:
                shortcut = block["residual_conv"].convolve(x)
            for layer in block["layers"].values():
                x = leaky(layer.convolve(x))
            if shortcut is not None:
                x = (x + shortcut) / math.sqrt(2)
            if r > 4:
                x = halve(x)
            if r == self._sizes[0] and alpha < 1:
                x = lerp(self._from_rgb("old_from_rgb", halve(given)), x, alpha)
        return self.output_layer(x.flatten(1)).squeeze(1)

    def _from_rgb(self, name: str, given: Tensor) -> Tensor:
        return leaky(self.layers[name]["conv"]["layers"][0].convolve(given))


def name_of_block(resolution: int) -> str:
    return f"basic_block{resolution.bit_length() - 3}"


def grow(small: nn.Module, large: nn.Module) -> None:
    """Start a growing network from that of half its resolution.

    Blocks keep their weights, and the small network's layers from and to RGB become
    the large one's old ones. At alpha 0, both compute the same.
    """
    new = large.state_dict()
    for name, tensor in small.state_dict().items():
        if "old_" not in name:
            name = name.replace("from_rgb", "old_from_rgb")
            name = name.replace("to_rgb", "old_to_rgb")
            new[name] = tensor
    large.load_state_dict(new)


def make_pair(row: str, dataset: str = "fdf") -> tuple[Generator, Discriminator]:
    """Make both networks of a row of Table 1 at their top resolution.

    The dataset is "fdf" (128 pixels, pose), "places" or, with 256 channels,
    "places_wide" (256 pixels, row E); the row may be "E_conv".
    """
    resolution = 128 if dataset == "fdf" else 256
    channels = channel_table(256 if dataset == "places_wide" else 128, resolution)
    keypoints = KEYPOINTS if dataset == "fdf" else 0
    last = row.startswith("E")
    generator = Generator(
        resolution,
        channels,
        "iconv" if row in ("D", "E") else "conv",
        keypoints,
        down="weighted" if row == "D" else "plain",
        pose="one_hot" if row in ("A", "B") else "scalar",
        growing=not last,
    )
    discriminator = Discriminator(
        resolution,
        channels,
        keypoints,
        pose="scalar" if last else "one_hot",
        residual=last,
        growing=not last,
    )
    return generator, discriminator


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return (fake - real).mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def drift(real: Tensor) -> Tensor:
    """Return how far real scores are from 0."""
    return real.square().mean()


def gradient_norms(
    discriminator: nn.Module, image: Tensor, *inputs: Any, inside: Tensor | None = None
) -> Tensor:
    """Return the L2 norms [N] of the scores' gradients for images, times `inside`."""
    image = image.detach().requires_grad_()
    scores = discriminator(image, *inputs)
    (gradient,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
    if inside is not None:
        gradient = gradient * inside
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def penalise(norms: Tensor, form: str) -> Tensor:
    """Penalise norms "squared" (eq. 9, or unmasked in row A), or "clamped" (eq. 11)."""
    if form == "clamped":
        return F.relu(norms - 1).mean()
    return (norms - 1).square().mean()


# By name: whether the gradient is masked, and what is made of its norm.
PENALTIES = {
    "standard": (False, "squared"),  # row A
    "masked": (True, "squared"),  # eq. 9
    "clamped": (True, "clamped"),  # eq. 10 and 11
}


class Batch(NamedTuple):
    """What both players see, at the growing networks' `alpha`."""

    truth: Tensor
    mask: Tensor
    points: Tensor | None = None
    alpha: float = 1.0

    @property
    def condition(self) -> Tensor:
        return self.truth * self.mask

    @property
    def context(self) -> tuple[Any, ...]:
        return self.condition, self.mask, self.points, self.alpha


def complete(
    generator: nn.Module, batch: Batch, z: Tensor, pasting: bool = True
) -> Tensor:
    condition, mask, points, alpha = batch.context
    output = generator(condition, mask, z, points, alpha)
    return paste(output, condition, mask) if pasting else output


def discriminator_turn(
    generator: nn.Module,
    discriminator: nn.Module,
    batch: Batch,
    z: Tensor,
    *,
    drift_weight: float = DRIFT_WEIGHT,
    pasting: bool = True,
) -> dict[str, Any]:
    """Return the discriminator's loss but for the penalty, and its gradients."""
    with torch.no_grad():
        fake_image = complete(generator, batch, z, pasting)
    real = discriminator(batch.truth, *batch.context)
    fake = discriminator(fake_image, *batch.context)
    adversarial, drifted = wasserstein_discriminator(real, fake), drift(real)
    loss = adversarial + drift_weight * drifted
    return {
        "loss": loss.detach(),
        "adversarial": adversarial.detach(),
        "drift": drifted.detach(),
        "gradients": gradients(loss, discriminator),
    }


def penalty_turn(
    generator: nn.Module,
    discriminator: nn.Module,
    batch: Batch,
    z: Tensor,
    t: Tensor,
    *,
    form: str = "clamped",
    weight: float = PENALTY_WEIGHT,
    pasting: bool = True,
) -> dict[str, Any]:
    """Return the penalty between real (t = 1) and completed images, and its gradients.

    `t` is [N, 1, 1, 1]; `form` is one of `PENALTIES`.
    """
    with torch.no_grad():
        fake = complete(generator, batch, z, pasting)
    mixed = t * batch.truth + (1 - t) * fake
    masked, kind = PENALTIES[form]
    inside = 1 - batch.mask if masked else None
    norms = gradient_norms(discriminator, mixed, *batch.context, inside=inside)
    loss = weight * penalise(norms, kind)
    return {
        "loss": loss.detach(),
        "norms": norms.detach(),
        "gradients": gradients(loss, discriminator),
    }


def generator_turn(
    generator: nn.Module,
    discriminator: nn.Module,
    batch: Batch,
    z: Tensor,
    *,
    pasting: bool = True,
) -> dict[str, Any]:
    """Return the generator's loss, its images and its gradients."""
    fake_image = complete(generator, batch, z, pasting)
    loss = wasserstein_generator(discriminator(fake_image, *batch.context))
    return {
        "loss": loss.detach(),
        "images": fake_image.detach(),
        "gradients": gradients(loss, generator),
    }


def turns(
    generator: nn.Module,
    discriminator: nn.Module,
    batch: Batch,
    z: tuple[Tensor, Tensor],
    t: Tensor,
    *,
    form: str = "clamped",
    penalty_weight: float = PENALTY_WEIGHT,
    drift_weight: float = DRIFT_WEIGHT,
    pasting: bool = True,
) -> dict[str, dict[str, Any]]:
    """Take all turns at the same parameters.

    The discriminator's turn and the penalty use the first latents, the generator's
    the second.
    """
    networks = generator, discriminator, batch
    return {
        "discriminator": discriminator_turn(
            *networks, z[0], drift_weight=drift_weight, pasting=pasting
        ),
        "penalty": penalty_turn(
            *networks, z[0], t, form=form, weight=penalty_weight, pasting=pasting
        ),
        "generator": generator_turn(*networks, z[1], pasting=pasting),
    }


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Return gradients by released name, with zeros for what takes no part."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    taken = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, taken, strict=True))


COUNTS = {  # of the authors' code, without each linear layer's unused second copy
    ("fdf", "A"): (3_170_918, 3_168_577),
    ("fdf", "B"): (3_170_918, 3_168_577),
    ("fdf", "C"): (3_138_966, 3_168_577),
    ("fdf", "D"): (3_052_116, 3_168_577),
    ("fdf", "E"): (3_053_330, 3_178_571),
    ("places", "B"): (3_059_670, 2_997_033),
    ("places", "D"): (2_973_050, 2_997_033),
    ("places", "E_conv"): (3_061_221, 3_122_521),
    ("places", "E"): (2_974_587, 3_122_521),
    ("places_wide", "E"): (11_528_427, 12_419_417),
}
SMALL = {4: 16, 8: 16, 16: 8, 32: 4}
Row = dict[str, Any]


def check_counts() -> Iterator[Row]:
    for (dataset, row), counts in COUNTS.items():
        with torch.device("meta"):
            pair = make_pair(row, dataset)
        for player, network, expected in zip("GD", pair, counts, strict=True):
            count = sum(p.numel() for p in network.parameters())
            name = f"count: {dataset} {row} {player}"
            yield outcome(name, count, expected, count == expected)


def small_pair(
    conv: str = "iconv", keypoints: int = 0, **options: Any
) -> tuple[Generator, Discriminator]:
    """Make the small networks of 32 pixels; options are the generator's."""
    generator = Generator(32, SMALL, conv, keypoints, 4, **options)
    return generator, Discriminator(32, SMALL, keypoints, pose_resolution=16)


def check_names(folder: Path) -> Iterator[Row]:
    with torch.device("meta"):
        pairs = {
            "fdf_E": make_pair("E", "fdf"),
            "places_E": make_pair("E", "places"),
            "places_E_conv": make_pair("E_conv", "places"),
            "places256": make_pair("E", "places_wide"),
            "conv_small": small_pair("conv"),
            "iconv_small": small_pair(),
            "iconv_pose_small": small_pair(keypoints=KEYPOINTS),
        }
    for name, pair in pairs.items():
        for player, network in zip("GD", pair, strict=True):
            path = folder / f"imputation_{name}_{player}.json"
            if not path.is_file():
                continue
            released = {
                key: shape
                for key, shape in json.loads(path.read_text()).items()
                if ".linear." not in key  # unused copies
            }
            ours = {k: list(v.shape) for k, v in network.state_dict().items()}
            title = f"names: {name} {player}"
            yield outcome(title, len(ours), len(released), ours == released)


def check_layers(path: Path) -> Iterator[Row]:
    """Compare layers with the authors' arrays, which are NHWC and HWIO."""
    if not path.is_file():
        return
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]).double() for name in file.files}

    def nchw(name: str) -> Tensor:
        return arrays[name].movedim(-1, 1)

    def compare(name: str, ours: Tensor) -> Row:
        error = float((ours - nchw(name)).abs().max())
        return outcome(f"layer: {name}", error, "< 1e-5", error < 1e-5)

    for case, window in (("c3_r16", 5), ("c3_r8", 3), ("c1_rN", 5)):
        kernel = arrays[f"{case}/kernel"]
        layer = IConv(kernel.shape[2], kernel.shape[3], kernel.shape[0], window)
        state = {
            "weight": kernel.permute(3, 2, 0, 1),
            "bias": arrays[f"{case}/bias"],
            "expected_value_updater.input_updater.weight": arrays[
                f"{case}/ev_kernel"
            ].permute(3, 2, 0, 1),
            "expected_value_updater.input_updater.bias": arrays[f"{case}/ev_bias"],
        }
        if f"{case}/mask_kernel" in arrays:
            weight = arrays[f"{case}/mask_kernel"].permute(3, 2, 0, 1)
            state["mask_updater.weight"] = weight
        layer.double().load_state_dict(state)
        x, c = nchw(f"{case}/x"), nchw(f"{case}/c")
        scales = 1 / kernel[..., 0].numel() ** 0.5, kernel.shape[2] ** 0.5 / window
        for name, scale in zip(("ws_scale", "ev_ws_scale"), scales, strict=True):
            error = abs(float(arrays[f"{case}/{name}"]) - scale)
            yield outcome(f"layer: {case}/{name}", error, "< 1e-5", error < 1e-5)
        with torch.no_grad():
            y, c_out = layer((x, c))
            yield compare(f"{case}/h", layer.estimate(x, c))
            yield compare(f"{case}/y", y)
            yield compare(f"{case}/c_out", c_out)
            all_known = layer.update(torch.ones_like(c))
            yield compare(f"{case}/c_out_allknown", all_known)
    y, c = halve_features(nchw("down/x"), nchw("down/c"), "weighted")
    yield compare("down/y", y)
    yield compare("down/c_out", c)
    yield compare("pixnorm/y", pixel_norm(nchw("down/x")))
    skip = ImputationSkip().double()
    names = {"beta0": arrays["skip/beta_enc"], "beta1": arrays["skip/beta_dec"]}
    skip.load_state_dict(names)
    with torch.no_grad():
        pairs = [(nchw(f"skip/x_{k}"), nchw(f"skip/c_{k}")) for k in ("dec", "enc")]
        for name, ours in zip(("y", "c_out"), skip(*pairs), strict=True):
            yield compare(f"skip/{name}", ours)


def draw_batch(size: int, seed: int = 0) -> tuple[Batch, Tensor, Tensor]:
    """Draw images, masks, points, latents of the small networks and t."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    truth = 2 * uniform(2, 3, size, size) - 1
    mask = (uniform(2, 1, size, size) < 0.6).double()
    z = torch.randn(2, 4, 4, 4, generator=rng, dtype=torch.float64)
    batch = Batch(truth, mask, uniform(2, 2 * KEYPOINTS))
    return batch, z, uniform(2, 1, 1, 1)


def check_identities() -> Iterator[Row]:
    torch.manual_seed(0)
    batch, z, t = draw_batch(32)
    condition, mask, points, _ = batch.context
    options = dict(growing=True)
    for row, conv, down, pose in (
        ("A", "conv", "plain", "one_hot"),
        ("C", "conv", "plain", "scalar"),
        ("D", "iconv", "weighted", "scalar"),
    ):
        kinds = dict(down=down, pose=pose, **options)
        small, large = (
            Generator(r, SMALL, conv, KEYPOINTS, 4, **kinds).double() for r in (16, 32)
        )
        grow(small, large)
        half = halve_features(condition, mask, down)
        with torch.no_grad():
            grown = large(condition, mask, z, points, 0.0)
            error = float((grown - up2(small(*half, z, points))).abs().max())
        yield outcome(f"grown: {row} G", error, "< 1e-12", error < 1e-12)
    kinds = dict(pose="one_hot", residual=False, **options)
    small, large = (
        Discriminator(r, SMALL, KEYPOINTS, **kinds).double() for r in (16, 32)
    )
    grow(small, large)
    seen = batch.truth, condition, mask
    with torch.no_grad():
        error = large(*seen, points, 0.0) - small(*map(halve, seen), points)
    error = float(error.abs().max())
    yield outcome("grown: A-D D", error, "< 1e-12", error < 1e-12)

    for conv, form in (("iconv", "code"), ("iconv", "paper"), ("conv", "code")):
        pair = small_pair(conv, KEYPOINTS, form=form)
        generator, discriminator = (network.double() for network in pair)
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter *= 3  # so that the penalty is not 0
        taken = turns(generator, discriminator, batch, (z, z), t)
        for turn, network in (
            ("discriminator", discriminator),
            ("penalty", discriminator),
            ("generator", generator),
        ):
            error = gradient_error(turn, network, taken[turn], pair, batch, z, t)
            name = f"gradient: {conv} {form} {turn}"
            yield outcome(name, error, "< 1e-5", error < 1e-5)


def gradient_error(
    turn: str,
    network: nn.Module,
    taken: dict[str, Any],
    pair: tuple[nn.Module, nn.Module],
    batch: Batch,
    z: Tensor,
    t: Tensor,
    step: float = 1e-7,  # few units cross their activations' kinks
) -> float:
    """Compare a directional derivative with a central difference, relatively."""
    function = {
        "discriminator": lambda: discriminator_turn(*pair, batch, z),
        "penalty": lambda: penalty_turn(*pair, batch, z, t),
        "generator": lambda: generator_turn(*pair, batch, z),
    }[turn]
    directions = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    expected = sum((taken["gradients"][n] * d).sum() for n, d in directions.items())
    losses = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter += sign * step * directions[name]
        losses.append(float(function()["loss"]))
    difference = (losses[0] - losses[1]) / (2 * step)
    return abs(difference / float(expected) - 1)


def outcome(check: str, ours: Any, expected: Any, equal: bool) -> Row:
    if isinstance(ours, float):
        ours = f"{ours:.1e}"
    return {"check": check, "ours": ours, "expected": expected, "equal": equal}


def main() -> None:
    from timing import print_table

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder = Path(__file__).parent.parent / "tests" / "golden"
    parser.add_argument("--golden", type=Path, default=folder)
    parser.add_argument("--names", type=Path, help="the JSON files, if elsewhere")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        *check_counts(),
        *check_names(arguments.names or arguments.golden),
        *check_layers(arguments.golden / "imputation_layers.npz"),
        *check_identities(),
    ]
    print_table(rows)
    if not all(row["equal"] for row in rows):
        raise SystemExit("error: some checks failed.")


if __name__ == "__main__":
    main()
