"""Pictures for tests of the wall: all kinds that decode, and all kinds that do not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

Dataset = dict[bytes, bytes]


def picture(number: int, width: int = 300, height: int = 450) -> Image.Image:
    """Smooth colours that tell covers apart and show where on a cover one is."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = columns * 200 // width + 20
    green = rows * 200 // height + 20
    blue = np.full_like(rows, number * 67 % 200 + 28)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encoded(image: Image.Image, format_: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def small_wall(count: int = 23) -> Dataset:
    """``count`` covers of several shapes, and titles for some of them."""
    sizes = ((300, 450), (300, 300), (200, 320), (640, 420), (290, 440), (64, 96))
    files = {
        f"shelf/{number:03}.jpg".encode(): encoded(picture(number, *sizes[number % len(sizes)]), quality=90)
        for number in range(count)
    }
    files[b"catalog.jsonl"] = b"".join(
        b'{"id":"%03d","title":"Title %d","author":"Somebody"}\n' % (number, number) for number in range(0, count, 2)
    )
    return files


def no_pictures() -> dict[str, tuple[bytes, str]]:
    """Files that must become text covers, with the reason that is counted."""
    jpeg = encoded(picture(1))
    return {
        "text": (b"this is no picture at all", "not_decodable"),
        "empty": (b"", "empty"),
        "truncated": (jpeg[: len(jpeg) // 2], "not_decodable"),
        "cut_header": (jpeg[:20], "not_decodable"),
        "truncated_png": (encoded(picture(1), "PNG")[:700], "not_decodable"),
        "filler": (encoded(Image.new("L", (1, 1)), "GIF"), "too_small"),
        "png_bomb": (_png_header(60_000, 60_000), "too_many_pixels"),
        "large_png": (_png_header(8_001, 8_001), "too_many_pixels"),
        "jpeg_bomb": (_resized_jpeg(jpeg, 65_000, 65_000), "too_many_pixels"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_decodable"),
        "bmp": (encoded(picture(1), "BMP"), "not_decodable"),
    }


def odd_pictures() -> dict[str, bytes]:
    """Pictures out of the ordinary that must be shown; their upper left quarter is dark, the rest is light."""
    base = Image.new("L", (200, 300), 220)
    base.paste(30, (0, 0, 100, 150))
    rgb = base.convert("RGB")
    deep = Image.fromarray(np.asarray(base).astype(np.uint16) * 257)
    alpha = rgb.convert("RGBA")
    # Light where nothing hides the paper.
    alpha.putalpha(Image.eval(base, lambda value: 255 if value < 100 else 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned = rgb.transpose(Image.Transpose.ROTATE_90)
    return {
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey": encoded(base, "JPEG"),
        "progressive": encoded(rgb, "JPEG", progressive=True),
        "turned": encoded(turned, "JPEG", exif=exif, quality=95),
        "grey16": encoded(deep, "PNG"),
        "transparent": encoded(alpha, "PNG"),
        "palette": encoded(rgb.quantize(8), "PNG"),
        "one_bit": encoded(base.point(lambda value: 255 * (value > 100)).convert("1"), "PNG"),
        "animated": encoded(rgb, "GIF", save_all=True, append_images=[Image.new("RGB", rgb.size, "white")]),
        "webp": encoded(rgb, "WEBP"),
        "avif": encoded(rgb, "AVIF"),
        "huge": encoded(rgb.resize((2200, 3300)), "JPEG"),
        "huge_png": encoded(base.resize((2200, 3300)), "PNG"),
    }


def _png_header(width: int, height: int) -> bytes:
    """A PNG of these sides that begins as it should; its pixels would be next to nothing, squeezed."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _resized_jpeg(jpeg: bytes, width: int, height: int) -> bytes:
    """The same bytes, with other sides in their frame header (ITU-T T.81, B.2.2)."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]
