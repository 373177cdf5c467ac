"""DeepGIN in PyTorch, written from its facts alone: networks, losses, a training step.

Images are NCHW in [0, 1]. A hole mask is 1 in holes. Parameters have released names.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

# By row: residual blocks, places of attention in G2 if there is one, back projection.
LADDER = {
    "coarse_only": ("std", None, False),
    "std": ("std", (), False),
    "std_sa": ("std", (16,), False),
    "std_mssa": ("std", (16, 32, 64), False),
    "dil_mssa": ("dilated", (16, 32, 64), False),
    "spd_mssa": ("spd", (16, 32, 64), False),
    "full": ("spd", (16, 32, 64), True),
}
PYRAMIDS = {"coarse": (2, 3, 4, 5, 6, 8, 10, 1), "refinement": (2, 3, 4, 5)}
WEIGHTS = dict(l1=1.0, adversarial=0.001, perceptual=0.05, style=80.0, tv=0.1)
WEIGHTS |= dict(discriminator=0.5, hole=5.0)
LAYER_WEIGHTS = {"code": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), "paper": (1, 1, 1, 1, 1)}


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def up2(x):
    return resize(x, [2 * n for n in x.shape[2:]])


def down4(x):
    return resize(x, [n // 4 for n in x.shape[2:]])


def paste(inside, outside, hole):
    return inside * hole + outside * (1 - hole)


def leaky(x):
    return F.leaky_relu(x, 0.2)


def conv(inputs, outputs, kernel, stride=1, dilation=1):
    """Make a convolution with replicate padding, initialised as DeepGIN's are."""
    geometry = {"padding": dilation * (kernel - 1) // 2, "padding_mode": "replicate"}
    made = nn.Conv2d(inputs, outputs, kernel, stride, dilation=dilation, **geometry)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    made.weight.data *= 0.1
    nn.init.zeros_(made.bias)
    return made


class ResidualBlock(nn.Module):
    """Parallel first convolutions, by dilation, and a second one that fuses them."""

    def __init__(self, channels, kind, pyramid):
        super().__init__()
        if kind == "spd":
            dilations = {f"branch{k}": d for k, d in enumerate(pyramid, 1)}
        else:
            dilations = {"std": {"branch1": 1}, "dilated": {"dilated1": 2}}[kind]
        for name, dilation in dilations.items():
            first = conv(channels, channels // len(dilations), 3, dilation=dilation)
            self.add_module(name, nn.ModuleDict({"conv": first}))
        last = nn.ModuleDict({"conv": conv(channels, channels, 3)})
        self.add_module(f"fusion{len(dilations) + 1}", last)

    def forward(self, x):
        *first, last = (child["conv"] for child in self.children())
        return x + last(torch.cat([F.relu(branch(x)) for branch in first], dim=1))


class NonLocal(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.theta = conv(channels, channels // 2, 1)
        self.phi = conv(channels, channels // 2, 1)
        self.g = conv(channels, channels // 2, 1)
        self.W = conv(channels // 2, channels, 1)

    def forward(self, x):
        theta, phi, g = (m(x).flatten(2) for m in (self.theta, self.phi, self.g))
        attention = (theta.mT @ phi).softmax(dim=2)
        y = g @ attention.mT
        return self.W(y.unflatten(2, x.shape[2:])) + x


class Generator(nn.Module):
    """Any row of the ladder: G1, and G2 but for "coarse_only"."""

    def __init__(self, variant="full", ngf=64):
        super().__init__()
        block, self._attention, self._back_projection = LADDER[variant]
        widths = [ngf // 2 * 2**k for k in range(5)]
        self.lr_coarse_tinker = self._coarse(block, widths[:4])
        if self._attention is not None:
            self._refinement(block, widths)

    def _coarse(self, block, widths):
        layers = {1: conv(4, widths[0], 7), 31: conv(widths[0], 3, 7)}
        for k, (outer, inner) in enumerate(pairwise(widths)):
            layers[4 + 3 * k] = conv(outer, inner, 4, 2)
            layers[26 - 4 * k] = nn.Upsample(None, 2, "bilinear", align_corners=True)
            layers[28 - 4 * k] = conv(inner, outer, 3)
        for k in range(12, 18):
            layers[k] = ResidualBlock(widths[-1], block, PYRAMIDS["coarse"])
        layers |= {k: nn.LeakyReLU(0.2) for k in (2, 5, 8, 11, 21, 25, 29)}
        return nn.Sequential(OrderedDict((f"{k}", layers[k]) for k in sorted(layers)))

    def _refinement(self, block, widths):
        c1, c2, c3, c4, c5 = widths
        self.r_en_conv1 = conv(4, c1, 7)
        self.r_de_conv5 = conv(c1, 3, 7)
        for k, (outer, inner) in enumerate(pairwise(widths), 2):
            self.add_module(f"r_en_conv{k}", conv(outer, inner, 4, 2))
            self.add_module(f"r_de_conv{6 - k}", conv(inner, outer, 3))
        for k in range(1, 7):
            residual = ResidualBlock(c5, block, PYRAMIDS["refinement"])
            self.add_module(f"r_md_mres{k}", residual)
        if 16 in self._attention:
            self.r_md_satn1 = NonLocal(c5)
        if 32 in self._attention:
            self.r_en_skp_conv4 = conv(c4, c3, 3)
            self.r_de_satn2 = NonLocal(c3)
            self.r_de_mix_conv1 = conv(c4 + c3, c4, 3)
        if 64 in self._attention:
            self.r_en_skp_conv3 = conv(c3, c2, 3)
            self.r_de_satn3 = NonLocal(c2)
            self.r_de_mix_conv2 = conv(c3 + c2, c3, 3)
        if self._back_projection:
            self.r_de_conv2_lr = conv(c3, c1, 3)
            self.r_de_conv3_lr = conv(c1, 3, 3)
            self.r_de_conv5_lr_alpha = conv(c1, 1, 3)

    def forward(self, masked, hole):
        """Complete images [N, 3, H, W] with white holes; return all outputs by name."""
        coarse = self.lr_coarse_tinker(torch.cat([masked, hole], dim=1))
        outputs = {"coarse": coarse, "output": coarse}
        if self._attention is not None:
            outputs |= self._refine(paste(coarse, masked, hole), masked, hole)
        outputs["completed"] = paste(outputs["output"], masked, hole)
        return outputs

    def _refine(self, pasted, masked, hole):
        x = leaky(self.r_en_conv1(torch.cat([pasted, hole], dim=1)))
        x = leaky(self.r_en_conv2(x))
        enc3 = leaky(self.r_en_conv3(x))
        enc4 = leaky(self.r_en_conv4(enc3))
        x = leaky(self.r_en_conv5(enc4))
        x = self.r_md_mres5(self.r_md_mres2(self.r_md_mres1(x)))
        if 16 in self._attention:
            x = self.r_md_satn1(x)
        x = self.r_md_mres6(self.r_md_mres4(self.r_md_mres3(x)))
        x = leaky(self.r_de_conv1(up2(x)))
        if 32 in self._attention:
            skip = self.r_de_satn2(leaky(self.r_en_skp_conv4(enc4)))
            x = leaky(self.r_de_mix_conv1(torch.cat([x, skip], dim=1)))
        x = leaky(self.r_de_conv2(up2(x)))
        if 64 in self._attention:
            skip = self.r_de_satn3(leaky(self.r_en_skp_conv3(enc3)))
            x = leaky(self.r_de_mix_conv2(torch.cat([x, skip], dim=1)))
        mix2 = x
        x = leaky(self.r_de_conv4(up2(leaky(self.r_de_conv3(up2(x))))))
        refined = self.r_de_conv5(x)
        if not self._back_projection:
            return {"refined": refined, "output": refined}
        lr = self.r_de_conv3_lr(leaky(self.r_de_conv2_lr(mix2)))
        alpha = torch.sigmoid(self.r_de_conv5_lr_alpha(x))
        d = paste(refined, masked, hole)
        output = d + resize(lr - down4(d), d.shape[2:]) * alpha
        return {"lr": lr, "refined": refined, "output": output}


class SpectralConv(nn.Module):
    """A zero-padded convolution divided by its spectral norm.

    Every forward pass takes one power iteration, also in evaluation. The vectors are
    replaced, not overwritten, since autograd may have kept those of earlier passes.
    """

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        made = nn.Conv2d(inputs, outputs, 4)  # for PyTorch's default initialisation
        self._stride = stride
        self.module = nn.Module()
        self.module.weight_bar, self.module.bias = made.weight, made.bias
        u, v = torch.randn(outputs), torch.randn(inputs * 4 * 4)
        self.module.register_buffer("weight_u", normalised(u))
        self.module.register_buffer("weight_v", normalised(v))

    def forward(self, x):
        own = self.module
        matrix = own.weight_bar.flatten(1)
        with torch.no_grad():
            own.weight_v = v = normalised(matrix.T @ own.weight_u)
            own.weight_u = u = normalised(matrix @ v)
        sigma = u @ matrix @ v
        return F.conv2d(x, own.weight_bar / sigma, own.bias, self._stride, padding=2)


def normalised(vector):
    return vector / (vector.norm() + 1e-12)


class Discriminator(nn.Module):
    """Two networks of the same shape: `layer1` at full resolution, `layer0` at half."""

    def __init__(self, ndf=64):
        super().__init__()
        widths = (6, ndf, 2 * ndf, 4 * ndf, 4 * ndf)
        for name in ("layer0", "layer1"):
            layers = []
            for k, (inputs, outputs) in enumerate(pairwise(widths)):
                stride = 2 if k < 2 else 1
                layers += [SpectralConv(inputs, outputs, stride), nn.LeakyReLU(0.2)]
            self.add_module(name, nn.Sequential(*layers[:-1]))

    def forward(self, x6):
        half = F.avg_pool2d(x6, 3, stride=2, padding=1, count_include_pad=False)
        return [self.layer1(x6), self.layer0(half)]


class Vgg(nn.Module):
    """VGG-19 up to conv5_1, frozen, under torchvision's names."""

    def __init__(self, divisor=1):
        super().__init__()
        self.size = 224  # to which images are resized
        layers, inputs = [], 3
        for width in (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, 512):
            if width:
                outputs = width // divisor
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1]).requires_grad_(False)

    def forward(self, images):
        """Return relu1_1, relu2_1, relu3_1, relu4_1 and conv5_1 before its ReLU."""
        x = resize(images, (self.size, self.size))
        mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        x = (x - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
        taken = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in (1, 6, 11, 20, 28):
                taken.append(x)
        return taken


def l1_pair(a, b, hole, hole_factor=5.0):
    inside, outside = (a - b) * hole, (a - b) * (1 - hole)
    return hole_factor * inside.abs().mean() + outside.abs().mean()


def l1_total(outputs, truth, hole, hole_factor=5.0):
    total = l1_pair(outputs["output"], truth, hole, hole_factor)
    if "refined" in outputs:
        total = total + l1_pair(outputs["coarse"], truth, hole, hole_factor)
    if "lr" in outputs:
        quarters = down4(truth), down4(hole)
        total = total + l1_pair(outputs["lr"], *quarters, hole_factor)
    return total


def hinge_discriminator(real_scores, fake_scores):
    real = sum(F.relu(1 - scores).mean() for scores in real_scores)
    return real + sum(F.relu(1 + scores).mean() for scores in fake_scores)


def hinge_generator(fake_scores):
    return -sum(scores.mean() for scores in fake_scores)


def total_variation(x, form):
    vertical, horizontal = x.diff(dim=2), x.diff(dim=3)
    if form == "paper":
        return vertical.abs().mean() + horizontal.abs().mean()
    return 2 * (vertical.square().mean() + horizontal.square().mean())


def perceptual(features_a, features_b, form):
    layers = zip(LAYER_WEIGHTS[form], features_a, features_b, strict=True)
    return sum(weight * (a - b).abs().mean() for weight, a, b in layers)


def gram(features):
    flat = features.flatten(2)
    return torch.einsum("nax,nbx->nab", flat, flat) / features[0].numel()


def style(features_a, features_b, form):
    distance = {"code": F.mse_loss, "paper": F.l1_loss}[form]
    layers = zip(LAYER_WEIGHTS[form], features_a, features_b, strict=True)
    return sum(weight * distance(gram(a), gram(b)) for weight, a, b in layers)


def players_step(
    generator, discriminator, vgg, truth, hole, form="code", weights=WEIGHTS
):
    """Take both players' losses and gradients at the same parameters.

    `form` is "code" or "paper", and `weights` replaces some of `WEIGHTS`. Returns
    "generator_loss", its weighted terms, and "discriminator_loss"; by released name,
    "generator_gradients", "discriminator_gradients" and the discriminator's "buffers"
    after its three passes.
    """
    weights = WEIGHTS | weights
    masked = truth * (1 - hole) + hole
    outputs = generator(masked, hole)
    completed = outputs["completed"]

    def score(image):
        return discriminator(torch.cat([masked, image], dim=1))

    detached_scores = score(completed.detach())
    real_scores = score(truth)
    fake_scores = score(completed)
    scored = hinge_discriminator(real_scores, detached_scores)
    discriminator_loss = weights["discriminator"] * scored

    target = vgg(truth)
    pictures = [vgg(image) for image in (outputs["output"], completed)]
    terms = {
        "l1": l1_total(outputs, truth, hole, weights["hole"]),
        "adversarial": hinge_generator(fake_scores),
        "perceptual": sum(perceptual(taken, target, form) for taken in pictures),
        "style": sum(style(taken, target, form) for taken in pictures),
        "tv": total_variation(completed, form),
    }
    terms = {name: weights[name] * term for name, term in terms.items()}
    generator_loss = sum(terms.values())
    return {
        "generator_loss": generator_loss.detach(),
        **{name: term.detach() for name, term in terms.items()},
        "discriminator_loss": discriminator_loss.detach(),
        "generator_gradients": gradients(generator_loss, generator),
        "discriminator_gradients": gradients(discriminator_loss, discriminator),
        "buffers": {name: b.clone() for name, b in discriminator.named_buffers()},
    }


def gradients(loss, network):
    names, parameters = zip(*network.named_parameters(), strict=True)
    taken = torch.autograd.grad(loss, parameters)
    return dict(zip(names, taken, strict=True))
