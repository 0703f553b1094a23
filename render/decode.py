"""A cover's bytes to pixels: bounded, and either a picture or :class:`NotAPicture`.

Baseline and progressive JPEG without orientation go through libjpeg-turbo, which shrinks while it decodes; all else
(CMYK, PNG, WebP, GIF, AVIF, an orientation, a JPEG with something odd in it) through Pillow. An animation shows its
first frame; what is transparent shows white paper.
"""

from __future__ import annotations

import io
import threading

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from render.core.cell import Box, cover_box
from render.shelf import Pixels
from synclib.errors import Unavailable

COVER_BYTES_MAX = 64 << 20
COVER_PIXELS_MAX = 64_000_000
SIDE_MIN = 8  # smaller pictures are the 1 x 1 fillers that catalogs serve for "no cover"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
_LARGE_PIXELS = 4_000_000
_PAPER = (255, 255, 255)
_EXIF_WITHIN = 64 << 10


class NotAPicture(Exception):
    """These bytes are no picture that is shown; ``reason`` is one word for the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder:
    """Decodes covers; large pictures one at a time, so that memory stays bounded."""

    def __init__(self) -> None:
        self._large = threading.Lock()

    def decode(self, data: bytes, shrink: int) -> tuple[Pixels, Box]:
        """A cover's pixels as they stand in a cell at 1/2^shrink, and where; NotAPicture where they are none."""
        if not data:
            raise NotAPicture("empty")
        try:
            if (fast := self._decode_jpeg(data, shrink)) is not None:
                return fast
            return self._decode_any(data, shrink)
        except MemoryError as error:
            # The machine's state, not the file's: it must not become a picture that is kept for a year.
            raise Unavailable("no memory to decode a cover") from error

    def _decode_jpeg(self, data: bytes, shrink: int) -> tuple[Pixels, Box] | None:
        if data[:2] != b"\xff\xd8" or b"Exif\0" in data[:_EXIF_WITHIN]:
            return None
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        _check_sides(width, height)
        if colorspace in ("CMYK", "YCCK") or width * height > _LARGE_PIXELS:
            return None
        box = cover_box(width, height).shrunk(shrink)
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=box.height, min_width=box.width)
        except ValueError:
            return None
        return _resized(Image.fromarray(pixels), box), box

    def _decode_any(self, data: bytes, shrink: int) -> tuple[Pixels, Box]:
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except (MemoryError, NotAPicture):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise NotAPicture("too_many_pixels") from error
        except Exception as error:
            # Pillow's parsers answer hostile bytes with a dozen kinds of exception; here all mean the same.
            raise NotAPicture("not_decodable") from error
        _check_sides(image.width, image.height)
        if image.width * image.height > _LARGE_PIXELS:
            with self._large:
                return _fit(image, shrink)
        return _fit(image, shrink)


def _check_sides(width: int, height: int) -> None:
    if width * height > COVER_PIXELS_MAX:
        raise NotAPicture("too_many_pixels")
    if min(width, height) < SIDE_MIN:
        raise NotAPicture("too_small")


def _fit(image: Image.Image, shrink: int) -> tuple[Pixels, Box]:
    try:
        is_lying = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        width, height = (image.height, image.width) if is_lying else image.size
        # Decodes a large JPEG smaller, never below these sides, which hold any box of a cell.
        image.draft("RGB", (512 >> shrink, 512 >> shrink))
        image.load()
        rgb = _flatten(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:
        raise NotAPicture("not_decodable") from error
    box = cover_box(width, height).shrunk(shrink)
    return _resized(rgb, box), box


def _flatten(image: Image.Image) -> Image.Image:
    """RGB without transparency. 16-bit grey keeps its upper 8 bits (Pillow would clip it to white)."""
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(deep, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGB", layer.size, _PAPER)
        paper.paste(layer, mask=layer.getchannel("A"))
        return paper
    return image.convert("RGB")


def _resized(image: Image.Image, box: Box) -> Pixels:
    if image.size == (box.width, box.height):
        return np.asarray(image)
    return np.asarray(image.resize((box.width, box.height), Image.Resampling.BICUBIC, reducing_gap=3.0))
