"""What ``make demo ARGS=--exit`` checks, through the proxy, as a browser would."""

from __future__ import annotations

import io
import json
import time

from PIL import Image

from tools.demo.processes import Demo, DemoError

_DRAWING_S_MAX = 300.0


class Checks:
    def __init__(self, demo: Demo) -> None:
        self._demo = demo

    def run(self) -> None:
        """DemoError names the first thing that is not as it should be."""
        wall = self._wall()
        self._page()
        self._must(self._leads_to(wall), "/tiles/0/0/0.jpg does not lead to the wall")
        count = self._tiles(wall)
        self._demo.say(f"{count} tiles fetched through the proxy and decoded; the second time from its cache")
        self._strangers(wall)
        self._fresh_cover(wall)

    def _must(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise DemoError(f"check failed: {what}")

    def _wall(self) -> dict[str, object]:
        status, _, body = self._demo.fetch("/wall.json")
        self._must(status == 200, f"/wall.json answers {status}")
        found: dict[str, object] = json.loads(body)
        return found

    def _page(self) -> None:
        status, headers, body = self._demo.fetch("/")
        is_page = status == 200 and "text/html" in headers.get("content-type", "") and b"<html" in body.lower()
        self._must(is_page, f"/ is no page ({status})")

    def _tiles(self, wall: dict[str, object]) -> int:
        zoom_max = wall["zoom_max"]
        assert isinstance(zoom_max, int)
        addresses = [(zoom, 0, 0) for zoom in range(zoom_max + 1)] + [
            (zoom_max, x, y) for x in range(2) for y in range(2)
        ]
        addresses = sorted(set(addresses))
        for zoom, x, y in addresses:
            path = f"/tiles/{wall['wall']}/{zoom}/{x}/{y}.jpg"
            status, headers, body = self._drawn(path)
            self._must(status == 200, f"{path} answers {status}: {body[:200]!r}")
            with Image.open(io.BytesIO(body)) as picture:
                picture.load()
                self._must(picture.size == (256, 256), f"{path} is {picture.size}")
                self._must(len(set(picture.resize((16, 16)).getdata())) > 8, f"{path} is empty")
            caching = headers.get("cache-control", "")
            self._must(caching == "public, max-age=31536000, immutable", f"{path} says Cache-Control: {caching}")
            again = self._demo.fetch(path)
            self._must(
                "hit" in again[1].get("cache-status", ""), f"{path} was not kept: {again[1].get('cache-status')}"
            )
            self._must(again[2] == body, f"{path} differs from the cache")
        return len(addresses)

    def _drawn(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """A tile; the first look at the whole of a large wall draws all of it, and is asked for again meanwhile."""
        deadline = time.monotonic() + _DRAWING_S_MAX
        while True:
            answer = self._demo.fetch(path)
            if answer[0] != 503 or "retry-after" not in answer[1] or time.monotonic() > deadline:
                return answer
            time.sleep(float(answer[1]["retry-after"]))

    def _strangers(self, wall: dict[str, object]) -> None:
        status, headers, _ = self._demo.fetch("/tiles/" + "0" * len(str(wall["wall"])) + "/0/0/0.jpg")
        is_refused = status == 404 and "no-store" in headers.get("cache-control", "")
        self._must(is_refused, f"an unknown wall answers {status}")
        self._must(self._demo.status(f"/tiles/{wall['wall']}/0/7/7.jpg") == 404, "a tile outside the wall is no 404")

    def _fresh_cover(self, wall: dict[str, object]) -> None:
        """A cover is published; the plain address leads to a new wall, and the old one is still served."""
        picture = Image.new("RGB", (300, 450), (200, 30, 30))
        picture.save(self._demo.place / "covers/a-new-cover.jpg")
        seq = self._demo.boxlink("publish", "covers", str(self._demo.place / "covers"))["seq"]
        self._demo.say(f"published a new cover: seq {seq}")
        self._demo.wait_for(lambda: self._wall()["wall"] != wall["wall"], "a new wall", "render")
        self._demo.say("the new wall is served, through the same proxy")
        status = self._demo.status(f"/tiles/{wall['wall']}/0/0/0.jpg")
        self._must(status == 200, f"the old wall answers {status}")
        # The redirect may be kept for its short lifetime, no longer.
        self._demo.wait_for(lambda: self._leads_to(self._wall()), "the plain address leads to it", "proxy", seconds=15)
        self._demo.say("the plain address leads to it")

    def _leads_to(self, wall: dict[str, object]) -> bool:
        status, headers, _ = self._demo.fetch("/tiles/0/0/0.jpg")
        return status in (302, 307) and headers.get("location", "").endswith(f"/tiles/{wall['wall']}/0/0/0.jpg")
