"""Draw the contact sheets of `docs/data.md`: sources, scenes, masks.

  python docs/contact_sheets.py

The files in the folder, the zip and the shards are also drawn scenes, saved in several
formats, so that no photos are needed.
"""

import shutil
import tempfile
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from migan_jax.config import base_config
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host, masks_on_device
from migan_jax.data.mask_sets import write_mask_set
from migan_jax.data.pipeline import make_loader
from migan_jax.data.rejects import Rejects
from migan_jax.data.scenes import SCENE_FAMILIES, draw_scene
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sheets import contact_sheet, paint_hole
from migan_jax.data.sources import FileSource, Source
from migan_jax.data.splits import open_splits
from migan_jax.data.transforms import sample_keys

DOCS = Path(__file__).parent
COLUMNS, SIDE = 8, 112
SUFFIXES = ".jpg", ".png", ".webp", ".tif"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save("sources", load_sources(Path(folder)))
    save("scenes", draw_scenes())
    save("masks", draw_masks())


def save(name: str, rows: dict[str, list[np.ndarray]]) -> None:
    """Write one sheet with a row per kind."""
    images = [image for row in rows.values() for image in row]
    labels = [kind if column == 0 else "" for kind in rows for column in range(COLUMNS)]
    path = DOCS / f"{name}.jpg"
    contact_sheet(images, SIDE, COLUMNS, labels).save(path, quality=85)
    print(path)


def load_sources(folder: Path) -> dict[str, list[np.ndarray]]:
    """Load batches from every kind of source, as in training."""
    photos, own_masks = folder / "photos", folder / "masks"
    write_photos(photos)
    write_mask_set(own_masks, kind="brush", count=COLUMNS, resolution=256, seed=1)
    shutil.make_archive(str(photos), "zip", photos)
    source = FileSource(photos, own_masks)
    shards = folder / "shards"
    rejects = Rejects(source, 0, report=None)
    ShardWriter(source, shards, ShardOptions(128, 1)).run(
        rejects, 1, lambda count: None
    )
    return {
        "folder": load_batch(photos, crop_scale=0.5),
        "zip": load_batch(photos.with_suffix(".zip"), crop="native"),
        "own masks": load_batch(photos, masks=str(own_masks), crop_scale=0.5),
        "ArrayRecord": load_batch(shards),
        "TFDS": load_batch(f"tfds:{write_tfds(source, folder / 'tfds')}"),
        "scenes": load_batch("scenes"),
    }


def write_photos(folder: Path) -> None:
    folder.mkdir()
    for index in range(COLUMNS):
        scene = Image.fromarray(draw_scene(np.random.default_rng(index), 256))
        suffix = SUFFIXES[index % len(SUFFIXES)]
        if index == 6:
            scene = scene.convert("L")
        scene.save(folder / f"{index:06d}{suffix}")


def write_tfds(source: Source, folder: Path) -> Path:
    """Write a source's images as a TFDS dataset, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = tfds.features.FeaturesDict({"number": np.int64, "image": image})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(len(source)):
                buffer = BytesIO()  # TFDS would encode arrays with TensorFlow
                Image.fromarray(source[index].image).save(buffer, "PNG")
                buffer.seek(0)
                yield index, {"number": index, "image": buffer}

    builder = Pictures(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def load_batch(source: Path | str, **data: object) -> list[np.ndarray]:
    config = base_config()
    config.update({"resolution": SIDE, "batch_size": COLUMNS})
    config.data.update({"source": str(source), "held_out": 0, **data})
    source, _ = open_splits(config)
    loaded = make_loader(config, source)(0)
    if "mask" not in loaded:
        return list(loaded["image"])
    pairs = zip(loaded["image"], loaded["mask"][..., 0] == 0, strict=True)
    return [paint_hole(image, hole) for image, hole in pairs]


def draw_scenes() -> dict[str, list[np.ndarray]]:
    return {
        f"scenes:{family}" + " again" * again: [
            draw_scene(np.random.default_rng((again, column)), SIDE, family)
            for column in range(COLUMNS)
        ]
        for family in SCENE_FAMILIES
        for again in (0, 1)
    }


def draw_masks() -> dict[str, list[np.ndarray]]:
    """Draw each kind on the host and on the device."""
    rng, rows = np.random.default_rng(0), {}
    keys = sample_keys(jax.random.key(0), 0, np.arange(COLUMNS))
    for kind, sampler in SAMPLERS.items():
        on_host = [mask_on_host(sampler, rng, 256) for _ in range(COLUMNS)]
        draw = jax.jit(
            lambda keys, sampler=sampler: masks_on_device(sampler, keys, 256)
        )
        on_device = np.asarray(draw(keys))[..., 0]
        for where, drawn in (("host", on_host), ("device", on_device)):
            holes = [np.uint8(255 * (1 - mask)) for mask in drawn]
            rows[f"{kind}, {where}"] = [np.dstack([hole] * 3) for hole in holes]
    return rows


if __name__ == "__main__":
    main()
