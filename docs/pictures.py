"""Make the pictures of README.md.

  # docs/inpaint.jpg and docs/rim.jpg, about ten minutes on two cores:
  python docs/pictures.py
  # The same with a trained network:
  python docs/pictures.py --checkpoint=migan_512_places2.pt

This repository contains no trained weights. Without --checkpoint, a narrow MI-GAN is
trained for a few minutes to fill strokes and discs in drawn scenes, with an L1 loss
only: enough for an illustration, far worse than the released networks.
"""

import argparse
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw

import migan_jax
from migan_jax.geometry.fill import DEFAULT_FEATHER, dilate
from migan_jax.models.migan import MIGANGenerator
from migan_jax.systems.optimizers import adam
from migan_jax.weights.checkpoint import Checkpoint

DOCS = Path(__file__).parent
SIZE, BATCH, STEPS, LEARNING_RATE = 128, 8, 1500, 2e-3
SCENES = 200  # drawn once; every sample is a random crop of one

SKY, HAZE, WOODS = (0.35, 0.6, 0.9), (0.85, 0.87, 0.85), (0.2, 0.35, 0.3)
GRASS, WHEAT = (0.35, 0.55, 0.2), (0.8, 0.7, 0.4)
WALL, ROOF, WINDOW = (0.85, 0.75, 0.6), (0.6, 0.25, 0.2), (0.2, 0.2, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="CKPT", type=Path)
    checkpoint = parser.parse_args().checkpoint
    model = migan_jax.load(checkpoint) if checkpoint else train_on_scenes()
    photo, mask = draw_scene(np.random.default_rng(5), 900, 600, with_mask=True)
    photo, mask = np.asarray(photo), np.asarray(mask)
    result = model.inpaint(photo, mask)
    row = join_panels((photo, np.repeat(mask[..., None], 3, axis=-1), result))
    row = row.resize((row.width // 2, row.height // 2))
    row.save(DOCS / "inpaint.jpg", quality=88)
    join_panels(make_rim_panels(model, photo, mask > 0)).save(
        DOCS / "rim.jpg", quality=88
    )
    known = mask == 0
    print(
        f"{DOCS / 'inpaint.jpg'}, feather {DEFAULT_FEATHER}: "
        f"{(result != photo).any(-1)[known].mean():.2%} of the known pixels changed"
    )


def join_panels(panels) -> Image.Image:
    gap = np.full((panels[0].shape[0], 12, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def make_rim_panels(model, photo, hole):
    """The ball under a tight mask, the rim it leaves, and the result with grow=8."""
    tight = ~dilate(~hole, 8)  # erosion, which also removes the wire from the mask
    masked = photo.copy()
    masked[tight] = 255
    results = model.inpaint(photo, tight), model.inpaint(photo, tight, grow=8)
    rows, columns = np.nonzero(tight)
    around = (
        slice(rows.min() - 60, rows.max() + 60),
        slice(columns.min() - 60, columns.max() + 60),
    )
    return [panel[around] for panel in (masked, *results)]


# Scenes.


def draw_scene(rng, width: int, height: int, with_mask: bool = False):
    """Draw sky, hills, a striped field and houses; return the scene and its mask."""
    y, x = np.mgrid[:height, :width] / height
    horizon = rng.uniform(0.45, 0.65)
    sky = blend(vary(rng, SKY), vary(rng, HAZE), y / horizon)
    hills = (
        horizon
        - 0.08
        - 0.06
        * sum(np.sin(x * rng.uniform(2, 9) + rng.uniform(0, 6)) / k for k in (1, 2))
    )
    stripes = np.sin(
        (x - rng.uniform(0, 1.5)) * rng.uniform(6, 14) / (y - horizon + 0.15)
    )
    field = blend(vary(rng, GRASS), vary(rng, WHEAT), 0.5 + 0.5 * stripes)
    scene = np.where((y > hills)[..., None], vary(rng, WOODS), sky)
    scene = np.where((y > horizon)[..., None], field, scene)
    image = Image.fromarray(np.uint8(255 * np.clip(scene, 0, 1)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        draw_house(draw, rng, height, horizon, rng.uniform(0, x.max()))
    mask = Image.new("L", image.size)
    if with_mask:
        draw_ball_and_wire(draw, ImageDraw.Draw(mask), image.size, horizon)
    return image, mask


def blend(first, second, weight):
    weight = np.clip(weight, 0, 1)[..., None]
    return (1 - weight) * first + weight * second


def vary(rng, colour):
    """Return a random colour near this one, from 0 to 1."""
    return np.clip(np.array(colour) + rng.uniform(-0.12, 0.12, 3), 0, 1)


def vary_rgb(rng, colour):
    """Return a random 8-bit colour near this one."""
    return tuple(int(255 * value) for value in vary(rng, colour))


def draw_house(draw, rng, height, horizon, x):
    side, tall = (rng.uniform(0.15, 0.4) * height for _ in range(2))
    left, bottom = x * height, (horizon + rng.uniform(0, 0.12)) * height
    draw.rectangle((left, bottom - tall, left + side, bottom), fill=vary_rgb(rng, WALL))
    roof = (left - 5, bottom - tall), (left + side + 5, bottom - tall)
    draw.polygon(
        (*roof, (left + side / 2, bottom - 1.4 * tall)), fill=vary_rgb(rng, ROOF)
    )
    window, pane = vary_rgb(rng, WINDOW), side / 7
    for row, column in itertools.product(range(1, 6, 2), repeat=2):
        top = bottom - tall + row * tall / 7
        edge = left + column * pane
        draw.rectangle((edge, top, edge + pane, top + tall / 7), fill=window)


def draw_ball_and_wire(draw, mask, size, horizon):
    """Draw both into the photo, and slightly larger into the mask."""
    width, height = size
    middle, radius = (0.42 * width, (horizon + 0.06) * height), 0.075 * height
    for r in np.arange(radius, 0, -1):
        light = int(235 - 120 * (r / radius) ** 2)
        draw.circle(middle, r, fill=(light, light // 3, light // 4))
    mask.circle(middle, radius + 5, fill=255)
    for target, thickness, fill in ((draw, 3, (25, 25, 30)), (mask, 9, 255)):
        points = [
            (x, height * (0.2 - 2e-7 * (x - 450) ** 2)) for x in range(0, width + 9, 9)
        ]
        target.line(points, fill=fill, width=thickness)


# Training.


def draw_mask(rng) -> np.ndarray:
    """Draw strokes and ellipses: 1 known, 0 hole."""
    mask = Image.new("L", (SIZE, SIZE), 1)
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.integers(1, 4)):
        points = [tuple(point) for point in rng.uniform(0, SIZE, (3, 2))]
        draw.line(points, fill=0, width=int(rng.integers(3, 24)))
    for _ in range(rng.integers(0, 3)):
        left, top, width, height = rng.uniform(0, 0.6 * SIZE, 4)
        left, top = 1.6 * left, 1.6 * top
        draw.ellipse((left, top, left + width, top + height), fill=0)
    return np.asarray(mask, np.float32)[..., None]


def draw_scenes(rng) -> list[Image.Image]:
    heights = rng.uniform(1, 4, SCENES) * SIZE
    return [draw_scene(rng, int(1.5 * height), int(height))[0] for height in heights]


def make_batch(scenes, rng):
    images = []
    for scene in rng.choice(SCENES, BATCH):
        width, height = scenes[scene].size
        left, top = (
            rng.integers(0, width - SIZE + 1),
            rng.integers(0, height - SIZE + 1),
        )
        crop = scenes[scene].crop((left, top, left + SIZE, top + SIZE))
        images.append(np.asarray(crop)[:, :: rng.choice((-1, 1))])
    masks = np.stack([draw_mask(rng) for _ in images])
    return np.stack(images).astype(np.float32) / 127.5 - 1, masks


def train_on_scenes() -> migan_jax.Model:
    generator = MIGANGenerator(SIZE, channel_base=4096, channel_max=256)
    variables = jax.jit(generator.init)(
        jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 4))
    )
    params, stats = variables["params"], variables["stats"]
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
    optimizer = optax.chain(
        adam(1.0, 0.5, 0.99, reparam=generator.reparam),
        optax.scale_by_schedule(schedule),
    )

    @jax.jit
    def step(params, state, image, mask):
        def loss(params):
            x = jnp.concatenate([mask - 0.5, image * mask], axis=-1)
            rgb, _ = generator.apply({"params": params, "stats": stats}, x)
            return jnp.mean(jnp.abs(rgb - image) * (1 - mask)) / jnp.mean(1 - mask)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    rng, start, state = np.random.default_rng(0), time.time(), optimizer.init(params)
    scenes = draw_scenes(rng)
    for index in range(STEPS):
        params, state, value = step(params, state, *make_batch(scenes, rng))
        if index % 50 == 49:
            seconds = time.time() - start
            print(
                f"step {index + 1} of {STEPS}: {value:.3f}, {seconds:.0f} s", flush=True
            )
    return migan_jax.Model.of(Checkpoint(generator, params, stats))


if __name__ == "__main__":
    main()
