"""Covers, names and catalogs as they come in the world, from a directory to tiles through the proxy."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from synclib.core.wall_index import SUFFIXES
from tests.fleet import Fleet, drawn, until
from tests.pictures import Dataset, encoded, no_pictures, odd_pictures, picture

ODD_NAMES = (
    b"a name with spaces.jpg", b"100%.jpg", b"%2e%2e%2f.jpg", b"what?.jpg", b"a&b=c#d;e.jpg",
    b"\xff\xfe latin \xe9.jpg",
    b"line\nbreak.jpg", b"bell\x07\x1b[31m.jpg", b"\x7f.jpg", b" .jpg", b".jpg", b"-rf.jpg", b"back\\slash.jpg",
    "\u202egnp.jpg".encode(), "\u66f8.jpg".encode(), b"'\"<script>.jpg", b"UPPER.JPG", b"x" * 251 + b".jpg",
)  # fmt: skip
GARBAGE = b"\n".join(
    (
        b"this is no JSON", b"{}", b"[]", b"null", b'{"id": null}', b'{"id": ["a"]}', b'{"id": "100%", "title": 7}',
        b"\xff\xfe\x00", b'{"id": "what?", "title": "cut', b"", b"   ", b"[" * 5000, b'{"id":"' + b"y" * 70_000 + b'"}',
        b'{"id":"100%","title":"A \\u0000 title\\u001b[31m","author":"An author"}',
        b'{"id":"nobody","title":"Nothing"}',
    )
)  # fmt: skip


def odd_covers() -> Dataset:
    """Files that end like pictures: some are, some are not, some have names that must be quoted everywhere."""
    suffix = {"jpeg_bomb": ".jpg", "truncated": ".jpg", "cut_header": ".jpg"}
    broken = {f"no/{name}{suffix.get(name, '.png')}".encode(): data for name, (data, _) in no_pictures().items()}
    shown = {f"odd/{name}.jpg".encode(): data for name, data in odd_pictures().items()}
    named = {b"names/" + name: encoded(picture(number)) for number, name in enumerate(ODD_NAMES)}
    return {**broken, **shown, **named, b"catalog.jsonl": GARBAGE, b"notes.txt": b"no cover"}


def test_odd_covers_no_covers_and_one_cover_through_one_proxy(fleet: Fleet) -> None:
    datasets = {
        "odd": odd_covers(),
        "none": {b"notes.txt": b"there is no cover here", b"sub/catalog.jsonl": GARBAGE},
        "one": {b"only.jpg": encoded(picture(7))},
    }
    fleet.sync("node")
    for name, files in datasets.items():
        assert fleet.publish(files, name) == 1
    renders = {name: fleet.render("node", name) for name in datasets}
    walls = {name: render.wall_at(1) for name, render in renders.items()}
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active"] * 3, "all three are found")
    for name, files in datasets.items():
        told = renders[name].get("/wall.json").json()
        covers = [path for path in files if path.lower().endswith(SUFFIXES)]
        assert told["covers"] == len(covers)
        expected = drawn(files)
        assert proxy.tiles(walls[name], expected) == expected
        assert all(_is_tile(data) for data in expected.values())

    counted = renders["odd"].text_covers()
    reasons = {reason for _, reason in no_pictures().values()}
    assert set(counted) == reasons
    for reason in reasons:
        assert counted[reason] >= sum(found == reason for _, found in no_pictures().values())
    assert renders["one"].text_covers() == renders["none"].text_covers() == {}

    # Titles are one line of text each, whatever a file is called; only names of nothing printable have none.
    reply = proxy.get(f"/tiles/{walls['odd']}/names/0.json")
    titles = {row["file"]: row["title"] for row in json.loads(reply.data)["covers"]}
    assert all(title.isprintable() for title in titles.values())
    assert {file for file, title in titles.items() if not title} == {"names/.jpg", "names/ .jpg", "names/\x7f.jpg"}
    assert titles["names/100%.jpg"] == "A title [31m"
    assert titles["names/\ufffd\ufffd latin \ufffd.jpg"] == "\ufffd\ufffd latin \ufffd"
    assert titles["names/what?.jpg"] == "what?"


def _is_tile(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.format == "JPEG" and image.size == (256, 256) and np.asarray(image).max() > 0
