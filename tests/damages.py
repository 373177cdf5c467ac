"""Ways to damage a file."""

import itertools
import shutil


def _empty(path):
    path.write_bytes(b"")


def _halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def _flip_a_bit(path):
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def _replace_by_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "emptied": _empty,
    "halved": _halve,
    "zeroed": _zero,
    "one bit changed": _flip_a_bit,
    "removed": lambda path: path.unlink(),
    "a folder": _replace_by_folder,
    "[1]": lambda path: path.write_text("[1]"),
    "{}": lambda path: path.write_text("{}"),
}


def damaged_copies(source, folder, every=1):
    """Yield copies of a folder with one damaged file each: (name, damage, copy).

    Args:
      every: yields every n-th case only.
    """
    names = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    for name, damage in list(itertools.product(names, DAMAGES))[::every]:
        shutil.copytree(source, folder)
        DAMAGES[damage](folder / name)
        yield str(name), damage, folder
        shutil.rmtree(folder)
