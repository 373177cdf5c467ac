"""Make the documents' pictures.

  # docs/inpaint.jpg and docs/rim.jpg, some ten minutes on two cores:
  python docs/pictures.py
  # The same with a trained network:
  python docs/pictures.py --checkpoint=migan_512_places2.pt

No trained weights come with this repository. Without --checkpoint, a narrow MI-GAN
learns for a few minutes to fill strokes and discs in drawn scenes, by its mean absolute
error alone: enough to show what goes where, far from what the released networks can do.
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
from migan_jax.geometry.filling import DEFAULT_FEATHER, grown
from migan_jax.models.migan import Generator
from migan_jax.systems.optimizers import adam
from migan_jax.weights.checkpoint import Checkpoint

DOCS = Path(__file__).parent
SIZE, BATCH, STEPS, LEARNING_RATE = 128, 8, 1500, 2e-3
SCENES = 200  # drawn once; every sample is another part of one of them

SKY, HAZE, WOODS = (0.35, 0.6, 0.9), (0.85, 0.87, 0.85), (0.2, 0.35, 0.3)
GRASS, WHEAT = (0.35, 0.55, 0.2), (0.8, 0.7, 0.4)
WALL, ROOF, WINDOW = (0.85, 0.75, 0.6), (0.6, 0.25, 0.2), (0.2, 0.2, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="CKPT", type=Path)
    checkpoint = parser.parse_args().checkpoint
    model = migan_jax.load(checkpoint) if checkpoint else learn_from_scenes()
    photo, mask = draw_scene(np.random.default_rng(5), 900, 600, with_mask=True)
    photo, mask = np.asarray(photo), np.asarray(mask)
    result = model.inpaint(photo, mask)
    panels = photo, np.repeat(mask[..., None], 3, axis=-1), result
    row = row_of(panels)
    row = row.resize((row.width // 2, row.height // 2))
    row.save(DOCS / "inpaint.jpg", quality=88)
    row_of(rim(model, photo, mask > 0)).save(DOCS / "rim.jpg", quality=88)
    known = mask == 0
    print(
        f"{DOCS / 'inpaint.jpg'}, feather {DEFAULT_FEATHER}; of the known pixels "
        f"{(result != photo).any(-1)[known].mean():.2%} changed"
    )


def row_of(panels) -> Image.Image:
    gap = np.full((panels[0].shape[0], 12, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def rim(model, photo, hole):
    """The ball under a mask that is drawn too tight, what is left of it, the cure."""
    tight = ~grown(~hole, 8)  # which takes the wire out of the mask as a whole
    shown = photo.copy()
    shown[tight] = 255
    results = model.inpaint(photo, tight), model.inpaint(photo, tight, grow=8)
    rows, columns = np.nonzero(tight)
    around = (
        slice(rows.min() - 60, rows.max() + 60),
        slice(columns.min() - 60, columns.max() + 60),
    )
    return [panel[around] for panel in (shown, *results)]


# Scenes.


def draw_scene(rng, width: int, height: int, with_mask: bool = False):
    """Sky, hills, a striped field and houses; and what is to be removed from them."""
    y, x = np.mgrid[:height, :width] / height
    horizon = rng.uniform(0.45, 0.65)
    sky = mix(near(rng, SKY), near(rng, HAZE), y / horizon)
    hills = (
        horizon
        - 0.08
        - 0.06
        * sum(np.sin(x * rng.uniform(2, 9) + rng.uniform(0, 6)) / k for k in (1, 2))
    )
    stripes = np.sin(
        (x - rng.uniform(0, 1.5)) * rng.uniform(6, 14) / (y - horizon + 0.15)
    )
    field = mix(near(rng, GRASS), near(rng, WHEAT), 0.5 + 0.5 * stripes)
    scene = np.where((y > hills)[..., None], near(rng, WOODS), sky)
    scene = np.where((y > horizon)[..., None], field, scene)
    image = Image.fromarray(np.uint8(255 * np.clip(scene, 0, 1)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        draw_house(draw, rng, height, horizon, rng.uniform(0, x.max()))
    mask = Image.new("L", image.size)
    if with_mask:
        draw_ball_and_wire(draw, ImageDraw.Draw(mask), image.size, horizon)
    return image, mask


def mix(first, second, share):
    share = np.clip(share, 0, 1)[..., None]
    return (1 - share) * first + share * second


def near(rng, colour):
    """One of the colours like this, from 0 to 1."""
    return np.clip(np.array(colour) + rng.uniform(-0.12, 0.12, 3), 0, 1)


def ink(rng, colour):
    return tuple(int(255 * value) for value in near(rng, colour))


def draw_house(draw, rng, height, horizon, at):
    side, tall = (rng.uniform(0.15, 0.4) * height for _ in range(2))
    left, bottom = at * height, (horizon + rng.uniform(0, 0.12)) * height
    draw.rectangle((left, bottom - tall, left + side, bottom), fill=ink(rng, WALL))
    roof = (left - 5, bottom - tall), (left + side + 5, bottom - tall)
    draw.polygon((*roof, (left + side / 2, bottom - 1.4 * tall)), fill=ink(rng, ROOF))
    window, pane = ink(rng, WINDOW), side / 7
    for row, column in itertools.product(range(1, 6, 2), repeat=2):
        top = bottom - tall + row * tall / 7
        edge = left + column * pane
        draw.rectangle((edge, top, edge + pane, top + tall / 7), fill=window)


def draw_ball_and_wire(draw, mask, size, horizon):
    """In the photo, and a little larger in the mask, as people paint."""
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


# A network for them.


def draw_mask(rng) -> np.ndarray:
    """Strokes and boxes: 1 known, 0 hole."""
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


def batch_of(scenes, rng):
    images = []
    for scene in rng.choice(SCENES, BATCH):
        width, height = scenes[scene].size
        left, top = (
            rng.integers(0, width - SIZE + 1),
            rng.integers(0, height - SIZE + 1),
        )
        part = scenes[scene].crop((left, top, left + SIZE, top + SIZE))
        images.append(np.asarray(part)[:, :: rng.choice((-1, 1))])
    masks = np.stack([draw_mask(rng) for _ in images])
    return np.stack(images).astype(np.float32) / 127.5 - 1, masks


def learn_from_scenes() -> migan_jax.Model:
    generator = Generator(SIZE, channel_base=4096, channel_max=256)
    variables = jax.jit(generator.init)(
        jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 4))
    )
    params, stats = variables["params"], variables["stats"]
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
    optimizer = optax.chain(
        adam(1.0, 0.5, 0.99, reparam=generator.reparam),
        optax.scale_by_schedule(schedule),  # of steps
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
        params, state, value = step(params, state, *batch_of(scenes, rng))
        if index % 50 == 49:
            seconds = time.time() - start
            print(
                f"step {index + 1} of {STEPS}: {value:.3f}, {seconds:.0f} s", flush=True
            )
    return migan_jax.Model.of(Checkpoint(generator, params, stats))


if __name__ == "__main__":
    main()
