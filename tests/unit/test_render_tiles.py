from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import structlog

from render.byte_cache import ByteCache
from render.compose import Composer
from render.core.respond import Body
from render.metrics import Metrics
from render.others import hold_walls_of_others
from render.tiles import Tiles
from render.walls import HeldWall, Walls, load_wall
from synclib.clock import ManualClock, SystemClock
from synclib.core.registration import Registration
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.store.memory import MemoryStore
from tests.memory_reader import MemoryReader
from tests.pictures import small_wall


class GatedReader(MemoryReader):
    """Reads of covers wait until the gate is open."""

    def __init__(self, count: int, seq: int = 1) -> None:
        super().__init__(small_wall(count), seq)
        self.gate = threading.Event()
        self.is_waiting = threading.Event()

    def read(self, path: bytes) -> bytes:
        if path.endswith(b".jpg"):
            self.is_waiting.set()
            assert self.gate.wait(20)
        return super().read(path)


def _wall(reader: MemoryReader) -> HeldWall:
    return load_wall(lambda seq: reader, reader.seq, reader.digest)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def tiles(metrics: Metrics) -> Iterator[Tiles]:
    made = Tiles(Composer(metrics), metrics, 2)
    yield made
    made.close()


def test_many_who_ask_for_one_tile_get_one_drawing(tiles: Tiles, metrics: Metrics) -> None:
    reader = GatedReader(12)
    wall = _wall(reader)
    asked = [tiles.request(wall, 0, 0, 0) for _ in range(200)]
    asked += [tiles.request(wall, wall.layout.zoom_max, 0, 0) for _ in range(200)]
    reader.gate.set()
    bodies = {id(future.result(30)) for future in asked}
    assert len(bodies) == 2
    columns, rows = wall.layout.extent(wall.layout.zoom_max - 2)
    assert metrics.value("boxlink_render_tiles_total", source="covers") == columns * rows + 1
    assert metrics.value("boxlink_render_tiles_total", source="tiles") == sum(
        wall.layout.extent(zoom)[0] * wall.layout.extent(zoom)[1] for zoom in range(wall.layout.zoom_max - 2)
    )
    read = [path for path in reader.read_paths if path.endswith(b".jpg")]
    tiles.request(wall, 0, 0, 0).result(30)
    assert [path for path in reader.read_paths if path.endswith(b".jpg")] == read


def test_every_tile_asked_at_once_in_any_order_arrives(tiles: Tiles) -> None:
    wall = _wall(MemoryReader(small_wall(40)))
    asked = [
        tiles.request(wall, zoom, x, y)
        for zoom in range(wall.layout.zoom_max + 1)
        for x in range(wall.layout.extent(zoom)[0])
        for y in range(wall.layout.extent(zoom)[1])
    ]
    assert all(future.result(60).media_type == "image/jpeg" for future in asked)


def test_a_failure_is_not_kept(tiles: Tiles) -> None:
    reader = MemoryReader(small_wall(12))
    wall = _wall(reader)
    reader.failures[b"shelf/007.jpg"] = Unavailable("the store is away")
    with pytest.raises(Unavailable):
        tiles.request(wall, 0, 0, 0).result(30)
    reader.failures.clear()
    assert tiles.request(wall, 0, 0, 0).result(30).data


def test_too_many_at_once_are_refused(metrics: Metrics) -> None:
    tiles = Tiles(Composer(metrics), metrics, 1, flights_max=2)
    reader = GatedReader(12)
    wall = _wall(reader)
    zoom = wall.layout.zoom_max
    first = [tiles.request(wall, zoom, x, 0) for x in range(2)]
    with pytest.raises(Unavailable):
        tiles.request(wall, zoom, 2, 0)
    assert tiles.request(wall, zoom, 0, 0) is first[0]
    reader.gate.set()
    assert all(future.result(30) for future in first)
    assert tiles.request(wall, zoom, 2, 0).result(30)
    tiles.close()


def test_a_wall_given_up_closes_its_reader_after_its_last_use(tiles: Tiles) -> None:
    walls = Walls(keep=2)
    reader = GatedReader(12)
    first = _wall(reader)
    walls.show(first)
    drawing = tiles.request(first, first.layout.zoom_max, 0, 0)
    assert reader.is_waiting.wait(10)
    later = [_wall(MemoryReader(small_wall(12 + seq), seq)) for seq in (2, 3)]
    for wall in later:
        walls.show(wall)
    assert walls.find(first.id) is None
    assert [walls.find(wall.id) for wall in later] == later
    assert walls.current is later[1]
    assert not reader.is_closed
    reader.gate.set()
    assert drawing.result(30)
    with pytest.raises(Missing):
        tiles.request(first, first.layout.zoom_max, 1, 1).result(30)
    assert reader.is_closed


def test_an_older_wall_may_be_shown_again() -> None:
    walls = Walls(keep=2)
    made = [_wall(MemoryReader(small_wall(2 + seq), seq)) for seq in (1, 2)]
    for wall in (*made, made[0], made[1]):
        walls.show(wall)
        assert walls.current is wall
    assert all(walls.find(wall.id) is wall for wall in made)
    again = _wall(MemoryReader(small_wall(3), 7))
    walls.show(again)
    assert again.id == made[0].id
    assert walls.find(again.id) is walls.current is again
    assert [wall.is_retired for wall in made] == [True, False]
    walls.close()
    assert again.is_retired
    assert made[1].is_retired


def test_loading_reads_no_cover() -> None:
    reader = MemoryReader(small_wall(12))
    wall = _wall(reader)
    assert set(reader.read_paths) == {b"catalog.jsonl"}
    assert len(wall.covers) == 12
    assert wall.caption(2).title == "Title 2"
    assert wall.caption(3).title == "003"


def test_a_reader_of_another_digest_is_refused() -> None:
    reader = MemoryReader(small_wall(3))
    with pytest.raises(Corrupt):
        load_wall(lambda seq: reader, 1, "0" * 64)
    assert reader.is_closed


def test_a_dataset_without_covers_is_an_empty_shelf(tiles: Tiles) -> None:
    wall = _wall(MemoryReader({b"readme.txt": b"x"}))
    assert tiles.request(wall, 0, 0, 0).result(30).data


def test_the_cache_is_bounded_by_bytes() -> None:
    cache: ByteCache[int, Body] = ByteCache(100, lambda body: len(body.data))
    for number in range(10):
        cache.put(number, Body(bytes(30), "", ""))
        assert cache.get(0) is not None
    assert cache.bytes == 90
    assert [number for number in range(10) if cache.get(number)] == [0, 8, 9]
    cache.put(0, Body(bytes(10), "", ""))
    assert cache.bytes == 70
    cache.put(11, Body(bytes(101), "", ""))
    assert cache.get(11) is None


def test_a_wall_of_others_is_tried_again_while_the_store_does_not_answer() -> None:
    store, clock, walls = MemoryStore(), ManualClock(), Walls()
    body = Registration(handles=["/"], dataset="covers", seq=1).model_dump_json().encode()
    store.put("proxy/10.0.0.1.p80", body)
    walls.show(_wall(MemoryReader({b"a.jpg": b"2"}, seq=2)))
    reader, tries = MemoryReader({b"a.jpg": b"1"}, seq=1), []

    def open_reader(seq: int) -> MemoryReader:
        tries.append(seq)
        if len(tries) < 3:
            raise Unavailable("a moment")
        return reader

    hold_walls_of_others(store, "covers", walls, open_reader, structlog.get_logger(), clock)
    assert walls.find(_wall(reader).id) is not None
    assert tries == [1, 1, 1]


def test_the_walls_of_others_stand_behind_the_current_one() -> None:
    held = {seq: MemoryReader({b"a.jpg": b"%d" % seq}, seq=seq) for seq in (1, 2, 3, 4)}
    store = MemoryStore()
    for number, (seq, dataset, others) in enumerate([(4, "covers", [1, 3]), (2, "covers", []), (9, "maps", [5])]):
        body = Registration(handles=["/"], dataset=dataset, seq=seq, walls=others).model_dump_json().encode()
        store.put(f"proxy/10.0.0.{number}.p80", body)
    store.put("proxy/10.0.0.9.p80", b"garbage")
    walls = Walls()
    walls.show(_wall(held[4]))
    hold_walls_of_others(store, "covers", walls, held.__getitem__, structlog.get_logger(), SystemClock())
    assert walls.current is not None
    assert walls.current.seq == 4
    found = {seq for seq, reader in held.items() if walls.find(_wall(reader).id) is not None}
    assert found == {2, 3, 4}, "those next to it, as many as are kept"
