"""The addresses under ``/tiles/``, parsed strictly: one spelling for one tile.

========================================  =====================================================
``<wall>/<zoom>/<x>/<y>.jpg``             a tile of a named wall: never changes
``<wall>/names/<block>.json``             the names of 64 covers of a named wall: never changes
``<zoom>/<x>/<y>.jpg``                    redirects to that tile of the current wall
========================================  =====================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WALL = r"([A-Za-z0-9_-]{1,64})"
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_TILE = re.compile(rf"{_WALL}/{_NUMBER}/{_NUMBER}/{_NUMBER}\.jpg")
_NAMES = re.compile(rf"{_WALL}/names/{_NUMBER}\.json")
_CURRENT = re.compile(rf"{_NUMBER}/{_NUMBER}/{_NUMBER}\.jpg")


@dataclass(frozen=True, slots=True)
class TileAddress:
    wall: str
    zoom: int
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class NamesAddress:
    wall: str
    block: int


@dataclass(frozen=True, slots=True)
class CurrentAddress:
    zoom: int
    x: int
    y: int


Address = TileAddress | NamesAddress | CurrentAddress


def parse_address(path: str) -> Address | None:
    """What ``path``, the part after ``/tiles/``, asks for; None where it is no address of ours."""
    if match := _TILE.fullmatch(path):
        return TileAddress(match[1], int(match[2]), int(match[3]), int(match[4]))
    if match := _NAMES.fullmatch(path):
        return NamesAddress(match[1], int(match[2]))
    if match := _CURRENT.fullmatch(path):
        return CurrentAddress(int(match[1]), int(match[2]), int(match[3]))
    return None


def tile_path(wall: str, zoom: int, x: int, y: int) -> str:
    return f"/tiles/{wall}/{zoom}/{x}/{y}.jpg"
