"""Metadata of image files: read, updated, and passed to Pillow's writers.

EXIF blocks are edited in place rather than rewritten: maker notes contain absolute
offsets, and texts come in all encodings. Previews, which would show what was removed
from a photo, are dropped wherever they are stored.
"""

import dataclasses
import logging
import re
import struct
from typing import Any

from PIL import Image, PngImagePlugin

logger = logging.getLogger(__name__)

EXIF_START = b"Exif\0\0"
ORIENTATION, EXIF_DIRECTORY, GPS_DIRECTORY = 0x0112, 0x8769, 0x8825
EXIF_WIDTH, EXIF_HEIGHT = 0xA002, 0xA003
# Tags of a preview's offset and length: a JPEG, or uncompressed.
PREVIEW_TAGS = (0x0201, 0x0202), (0x0111, 0x0117)

# TIFF tags about pixel storage, which the writer sets. All others in the first
# directory are metadata.
TIFF_LAYOUT = {*range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 317, 320}
TIFF_LAYOUT |= {*range(322, 326), 330, 338, 339, 347, 513, 514, *range(529, 533), 34675}
TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP = 700, 33723, 34377
PHOTOSHOP_IPTC = 0x0404
PNG_XMP = "XML:com.adobe.xmp"
# A JPEG segment holds 65,533 bytes, including its own header.
MAX_JPEG_SEGMENT = 65_500


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata for a photo that has been turned upright."""

    exif: bytes = b""
    icc_profile: bytes | None = None
    xmp: bytes = b""
    iptc: bytes | None = None  # JPEG only; a TIFF has it in its EXIF
    comment: bytes | None = None  # JPEG only
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = dataclasses.field(default_factory=dict)  # PNG only
    colours: dict[bytes, bytes] = dataclasses.field(default_factory=dict)  # PNG only


def read_metadata(image: Image.Image, stored_exif: bytes) -> Metadata:
    """Read the metadata of an image that has been turned upright."""
    info = image.info
    if stored_exif:
        exif = clean_exif(stored_exif, image.size)
    else:
        exif = _exif_from_tags(image)
    xmp = info.get("xmp") or info.get(PNG_XMP) or b""
    photoshop = info.get("photoshop") or {}
    return Metadata(
        exif=exif,
        icc_profile=info.get("icc_profile"),
        xmp=_clean_xmp(xmp.encode() if isinstance(xmp, str) else xmp),
        iptc=photoshop.get(PHOTOSHOP_IPTC) if isinstance(photoshop, dict) else None,
        comment=info.get("comment") if image.format in ("JPEG", "MPO") else None,
        dpi=info.get("dpi"),
        text=_png_texts(image),
        colours=_png_colour_chunks(image) if image.format == "PNG" else {},
    )


def clean_exif(stored: bytes, size: tuple[int, int]) -> bytes:
    """Set an EXIF block's orientation to upright and its size; erase its preview."""
    block = bytearray(stored.removeprefix(EXIF_START))
    order = {b"II": "<", b"MM": ">"}[bytes(block[:2])]

    def read(kind: str, at: int) -> int:
        return struct.unpack_from(order + kind, block, at)[0]

    def find_entries(directory: int) -> dict[int, int]:
        """Return the offset of each tag's entry."""
        starts = range(directory + 2, directory + 2 + 12 * read("H", directory), 12)
        return {read("H", start): start for start in starts}

    def write(entry: int, value: int) -> None:
        kind = "H" if read("H", entry + 2) == 3 else "I"
        struct.pack_into(order + kind, block, entry + 8, value)

    first = read("I", 4)
    tags = find_entries(first)
    if ORIENTATION in tags:
        write(tags[ORIENTATION], 1)
    if EXIF_DIRECTORY in tags:
        details = find_entries(read("I", tags[EXIF_DIRECTORY] + 8))
        for tag, value in zip((EXIF_WIDTH, EXIF_HEIGHT), size, strict=True):
            if tag in details:
                write(details[tag], value)
    link = first + 2 + 12 * read("H", first)
    if len(block) >= link + 4 and (second := read("I", link)):
        preview = find_entries(second)
        for offset, length in PREVIEW_TAGS:
            if offset in preview and length in preview:
                start = read("I", preview[offset] + 8)
                stop = start + read("I", preview[length] + 8)
                block[start:stop] = bytes(len(block[start:stop]))
        struct.pack_into(order + "I", block, link, 0)
    return EXIF_START + bytes(block)


def _exif_from_tags(image: Image.Image) -> bytes:
    """Return the EXIF of a file without an EXIF block: TIFF, or texts in old PNGs."""
    exif = image.getexif()
    dropped = {ORIENTATION, TIFF_XMP, TIFF_PHOTOSHOP}
    dropped |= TIFF_LAYOUT if image.format == "TIFF" else set()
    for tag in dropped & {*exif}:
        del exif[tag]
    details = exif.get_ifd(EXIF_DIRECTORY) if EXIF_DIRECTORY in exif else {}
    if EXIF_WIDTH in details and EXIF_HEIGHT in details:
        details[EXIF_WIDTH], details[EXIF_HEIGHT] = image.size
    if not isinstance(exif.get(TIFF_IPTC, b""), bytes):
        # Pillow reads only the first number.
        logger.warning("Dropping IPTC metadata that is stored as numbers.")
        del exif[TIFF_IPTC]
    return exif.tobytes() if len(exif) else b""


def _clean_xmp(xmp: bytes) -> bytes:
    """Set the orientation in XMP to upright; drop previews."""
    orientation = rb"""(tiff:Orientation(?:\s*=\s*["']|>\s*))[0-9]"""
    previews = rb"<(xmp|xap):Thumbnails.*?</\1:Thumbnails>"
    return re.sub(previews, b"", re.sub(orientation, rb"\g<1>1", xmp), flags=re.DOTALL)


def _png_texts(image: Image.Image) -> dict[str, str]:
    """Return a PNG's texts, without ImageMagick's copies of EXIF, IPTC and XMP."""
    texts = getattr(image, "text", {}) if image.format == "PNG" else {}
    return {
        name: text
        for name, text in texts.items()
        if name != PNG_XMP and not name.startswith("Raw profile type")
    }


def _png_colour_chunks(image: Image.Image) -> dict[bytes, bytes]:
    """Return a PNG's colour chunks, for files without a profile."""
    chunks = {}
    if gamma := image.info.get("gamma"):
        chunks[b"gAMA"] = struct.pack(">I", round(100_000 * gamma))
    if chromaticity := image.info.get("chromaticity"):
        values = [round(100_000 * value) for value in chromaticity]
        chunks[b"cHRM"] = struct.pack(">8I", *values)
    if "srgb" in image.info:
        chunks[b"sRGB"] = bytes([image.info["srgb"]])
    return chunks


def writer_options(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Return the metadata as save arguments for Pillow's writer of this format."""
    if kind == "BMP":
        return {}
    options = {
        "exif": metadata.exif,
        "icc_profile": metadata.icc_profile,
        "xmp": metadata.xmp,
        "comment": metadata.comment,
        "dpi": metadata.dpi,
    }
    if kind == "JPEG":
        if metadata.iptc:
            options["extra"] = _photoshop_segment(metadata.iptc)
        for name in ("exif", "xmp", "comment"):
            if len(options[name] or b"") > MAX_JPEG_SEGMENT:
                logger.warning("Dropping %s, which is too long for a JPEG.", name)
                del options[name]
    if kind == "TIFF":
        options |= _tiff_options(metadata)
    if kind == "PNG":
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        for name, chunk in metadata.colours.items():
            chunks.add(name, chunk)
        for name, text in metadata.text.items():
            language = getattr(text, "lang", None) or ""
            chunks.add_itxt(name, text, language, getattr(text, "tkey", None) or "")
        if metadata.xmp:
            chunks.add_itxt(PNG_XMP, metadata.xmp.decode(errors="replace"))
    return {name: value for name, value in options.items() if value}


def _photoshop_segment(iptc: bytes) -> bytes:
    """Return a JPEG APP13 segment that holds only IPTC."""
    content = b"Photoshop 3.0\0" + b"8BIM" + PHOTOSHOP_IPTC.to_bytes(2) + bytes(2)
    content += len(iptc).to_bytes(4) + iptc + bytes(len(iptc) % 2)
    return b"\xff\xed" + (len(content) + 2).to_bytes(2) + content


def _tiff_options(metadata: Metadata) -> dict[str, Any]:
    exif = Image.Exif()
    exif.load(metadata.exif)
    if metadata.xmp:
        exif[TIFF_XMP] = metadata.xmp
    if EXIF_DIRECTORY in exif or GPS_DIRECTORY in exif:
        # Pillow writes these directories into uncompressed files only.
        return {"exif": exif, "compression": "raw"}
    return {"exif": exif}
