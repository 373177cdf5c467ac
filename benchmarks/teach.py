"""Train a generator of the paper's width on drawn scenes, for benchmarks.

  python benchmarks/teach.py out/taught256.safetensors
  python benchmarks/onnx.py --trained=out/taught256.safetensors

The accuracy of 8-bit quantisation depends on trained weights, and training as in the
paper needs an accelerator. So this minimises only the L1 distance in holes: first on
windows of half the size (the generator is fully convolutional), at the end on whole
images. It takes about forty minutes on two cores at 256 pixels. Completions are
blurred: the weights are for benchmarks only.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
import optax

from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.scenes import draw_scene
from migan_jax.data.transforms import sample_keys
from migan_jax.families import save_checkpoint
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.models.migan import MIGANGenerator
from migan_jax.models.noise import random_noise
from migan_jax.systems.images import generator_input, hole_psnr
from migan_jax.systems.optimizers import adam
from migan_jax.weights.checkpoint import Checkpoint

BATCH = 8  # windows; a quarter of it for whole images, which are four times as large
WHOLE_FRACTION = 0.15  # of the steps, at the end
LEARNING_RATE = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="CKPT", type=Path)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--scenes", type=int, default=1000, help="number of scenes to draw"
    )
    parser.add_argument(
        "--width", type=float, default=1.0, help="factor for the width of all layers"
    )
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = teach(arguments)
    save_checkpoint(checkpoint, arguments.output, "fused")


def teach(arguments: argparse.Namespace) -> Checkpoint:
    side, steps, width = arguments.resolution, arguments.steps, arguments.width
    generator = MIGANGenerator(side, int(32768 * width), int(512 * width))
    sample = np.zeros((1, side, side, 4), np.float32)
    variables = jax.jit(generator.init)(jax.random.key(0), sample)
    params, stats = variables["params"], variables["stats"]
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    optimizer = optax.chain(
        adam(1.0, 0.5, 0.99, reparam=generator.reparam),
        optax.scale_by_schedule(schedule),  # by step, since batches have two sizes
    )

    @jax.jit
    def step(params, state, key, image, mask):
        image = image.astype(np.float32) / 127.5 - 1
        count, height, width, _ = image.shape
        keys = sample_keys(key, 0, np.arange(count))
        noise = random_noise(keys, generator.noise_shapes(height, width))

        def loss(params):
            x = generator_input(image, mask)
            rgb, _ = generator.apply({"params": params, "stats": stats}, x, noise)
            return l1_in_hole(rgb, image, mask).mean(), hole_psnr(image, rgb, mask)

        gradient, psnr = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, psnr

    rng, start, state = np.random.default_rng(0), time.time(), optimizer.init(params)
    scenes = [draw_scene(rng, side) for _ in range(arguments.scenes)]
    print(f"{len(scenes)} scenes: {time.time() - start:.0f} s", flush=True)
    psnrs = []
    for index in range(steps):
        whole = index >= (1 - WHOLE_FRACTION) * steps
        windows = (side, BATCH // 4) if whole else (side // 2, BATCH)
        batch = draw_batch(rng, scenes, *windows)
        key = jax.random.key(index)
        params, state, psnr = step(params, state, key, *batch)
        psnrs.append(float(psnr))
        if index % 50 == 49:
            progress = f"{np.mean(psnrs[-50:]):.2f} dB, {time.time() - start:.0f} s"
            print(f"step {index + 1} of {steps}: {progress}", flush=True)
    return Checkpoint(generator, params, stats)


def draw_batch(rng, scenes, side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw randomly flipped windows, uint8 [N, S, S, 3], and masks [N, S, S, 1]."""
    images, masks = [], []
    while len(images) < count:
        scene = scenes[rng.integers(len(scenes))]
        mask = mask_on_host(SAMPLERS["free_form"], rng, len(scene))
        top, left = rng.integers(len(scene) - side + 1, size=2)
        window = slice(top, top + side), slice(left, left + side)
        if mask[window].any() and not mask[window].all():
            images.append(scene[window][:, :: rng.choice((-1, 1))])
            masks.append(mask[window][..., None].astype(np.float32))
    return np.stack(images), np.stack(masks)


if __name__ == "__main__":
    main()
