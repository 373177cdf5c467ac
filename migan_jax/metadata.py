"""What an image file says beside its pixels, and how it is written into another.

EXIF blocks are edited in place, not written anew: makers' notes point at their own
positions, and texts come in all encodings. What would show a photo as it was before
something was removed is left out: previews, in every carrier that has them.
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
# Where a preview is, and its length: a JPEG, or uncompressed.
PREVIEWS = (0x0201, 0x0202), (0x0111, 0x0117)

# TIFF tags about how the pixels are stored, which the writer decides: all others in the
# first directory are metadata.
TIFF_LAYOUT = {*range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 317, 320}
TIFF_LAYOUT |= {*range(322, 326), 330, 338, 339, 347, 513, 514, *range(529, 533), 34675}
TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP = 700, 33723, 34377
PHOTOSHOP_IPTC = 0x0404
PNG_XMP = "XML:com.adobe.xmp"
# A JPEG's segment holds 65,533 bytes with its own header.
LONGEST_IN_JPEG = 65_500


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels, which are upright now."""

    exif: bytes = b""
    icc_profile: bytes | None = None
    xmp: bytes = b""
    iptc: bytes | None = None  # JPEG's; a TIFF has it in its EXIF
    comment: bytes | None = None  # JPEG's
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = dataclasses.field(default_factory=dict)  # PNG's
    colours: dict[bytes, bytes] = dataclasses.field(default_factory=dict)  # PNG's


def metadata_of(image: Image.Image, exif_as_stored: bytes) -> Metadata:
    """Read them off an image that has been turned upright."""
    info = image.info
    if exif_as_stored:
        exif = upright_exif(exif_as_stored, image.size)
    else:
        exif = _exif_of_directory(image)
    xmp = info.get("xmp") or info.get(PNG_XMP) or b""
    photoshop = info.get("photoshop") or {}
    return Metadata(
        exif=exif,
        icc_profile=info.get("icc_profile"),
        xmp=_upright_xmp(xmp.encode() if isinstance(xmp, str) else xmp),
        iptc=photoshop.get(PHOTOSHOP_IPTC) if isinstance(photoshop, dict) else None,
        comment=info.get("comment") if image.format in ("JPEG", "MPO") else None,
        dpi=info.get("dpi"),
        text=_texts_of(image),
        colours=_colour_chunks_of(image) if image.format == "PNG" else {},
    )


def upright_exif(stored: bytes, size: tuple[int, int]) -> bytes:
    """An EXIF block for pixels of `size` that need not be turned, without a preview."""
    block = bytearray(stored.removeprefix(EXIF_START))
    order = {b"II": "<", b"MM": ">"}[bytes(block[:2])]

    def number(kind: str, at: int) -> int:
        return struct.unpack_from(order + kind, block, at)[0]

    def entries(directory: int) -> dict[int, int]:
        """Where each tag's entry is."""
        starts = range(directory + 2, directory + 2 + 12 * number("H", directory), 12)
        return {number("H", start): start for start in starts}

    def put(entry: int, value: int) -> None:
        kind = "H" if number("H", entry + 2) == 3 else "I"
        struct.pack_into(order + kind, block, entry + 8, value)

    first = number("I", 4)
    tags = entries(first)
    if ORIENTATION in tags:
        put(tags[ORIENTATION], 1)
    if EXIF_DIRECTORY in tags:
        details = entries(number("I", tags[EXIF_DIRECTORY] + 8))
        for tag, value in zip((EXIF_WIDTH, EXIF_HEIGHT), size, strict=True):
            if tag in details:
                put(details[tag], value)
    link = first + 2 + 12 * number("H", first)
    if len(block) >= link + 4 and (second := number("I", link)):
        preview = entries(second)
        for place, length in PREVIEWS:
            if place in preview and length in preview:
                start = number("I", preview[place] + 8)
                stop = start + number("I", preview[length] + 8)
                block[start:stop] = bytes(len(block[start:stop]))
        struct.pack_into(order + "I", block, link, 0)
    return EXIF_START + bytes(block)


def _exif_of_directory(image: Image.Image) -> bytes:
    """EXIF of a file whose tags are not in a block: TIFF, and texts in old PNGs."""
    exif = image.getexif()
    unwanted = {ORIENTATION, TIFF_XMP, TIFF_PHOTOSHOP}
    unwanted |= TIFF_LAYOUT if image.format == "TIFF" else set()
    for tag in unwanted & {*exif}:
        del exif[tag]
    details = exif.get_ifd(EXIF_DIRECTORY) if EXIF_DIRECTORY in exif else {}
    if EXIF_WIDTH in details and EXIF_HEIGHT in details:
        details[EXIF_WIDTH], details[EXIF_HEIGHT] = image.size
    if not isinstance(exif.get(TIFF_IPTC, b""), bytes):
        logger.warning(
            "IPTC stored as numbers, of which only one is read, is left out."
        )
        del exif[TIFF_IPTC]
    return exif.tobytes() if len(exif) else b""


def _upright_xmp(xmp: bytes) -> bytes:
    """XMP without previews, whose orientation is the usual one."""
    orientation = rb"""(tiff:Orientation(?:\s*=\s*["']|>\s*))[0-9]"""
    previews = rb"<(xmp|xap):Thumbnails.*?</\1:Thumbnails>"
    return re.sub(previews, b"", re.sub(orientation, rb"\g<1>1", xmp), flags=re.DOTALL)


def _texts_of(image: Image.Image) -> dict[str, str]:
    """A PNG's texts, without ImageMagick's copies of EXIF, IPTC and XMP."""
    texts = getattr(image, "text", {}) if image.format == "PNG" else {}
    return {
        name: text
        for name, text in texts.items()
        if name != PNG_XMP and not name.startswith("Raw profile type")
    }


def _colour_chunks_of(image: Image.Image) -> dict[bytes, bytes]:
    """What a PNG without a profile says about its colours."""
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
    """Metadata as arguments of Pillow's writer of a format."""
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
            if len(options[name] or b"") > LONGEST_IN_JPEG:
                logger.warning("A JPEG cannot hold %s so long: it is left out.", name)
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
    """JPEG's APP13 with nothing but IPTC in it."""
    content = b"Photoshop 3.0\0" + b"8BIM" + PHOTOSHOP_IPTC.to_bytes(2) + bytes(2)
    content += len(iptc).to_bytes(4) + iptc + bytes(len(iptc) % 2)
    return b"\xff\xed" + (len(content) + 2).to_bytes(2) + content


def _tiff_options(metadata: Metadata) -> dict[str, Any]:
    exif = Image.Exif()
    exif.load(metadata.exif)
    if metadata.xmp:
        exif[TIFF_XMP] = metadata.xmp
    if EXIF_DIRECTORY in exif or GPS_DIRECTORY in exif:
        # Pillow writes directories only into files that are not compressed.
        return {"exif": exif, "compression": "raw"}
    return {"exif": exif}
