"""What a publish asks of a store beside its packs, and what it does when a collector comes between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.core.names import pack_key
from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.host import no_progress
from synclib.engine.maintain import maintain
from synclib.errors import Conflict
from synclib.store.base import Body
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Content, Kit, put

FILES: Content = {b"%03d" % number: b"%d" % number * 20 for number in range(40)}
HEAD = "data/covers/head"


def metered(kit: Kit) -> Meter:
    """What is asked from now on."""
    meter = Meter()
    kit.dataset.store = MeteredStore(kit.store, meter)
    return meter


def objects(kit: Kit, kind: str) -> int:
    return len(list(kit.store.list(f"data/covers/{kind}/")))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    kit = Kit(tmp_path)
    kit.write(FILES)
    kit.publish()
    return kit


def test_a_small_change_costs_three_requests_beside_its_pack(kit: Kit) -> None:
    packs = objects(kit, "pack")
    kit.write({**FILES, b"001": b"new", b"new": b"new"})
    meter = metered(kit)
    done = kit.publish()
    assert done.head is not None
    maintain(kit.dataset, kit.host, no_progress, done.head)
    assert objects(kit, "pack") == packs + 1
    # Head; pack, run, head.
    assert meter.requests == {"get": 1, "put": 1 + 2, "list": 0, "delete": 0}
    assert not kit.verify().damage


def test_nothing_new_costs_one_request(kit: Kit) -> None:
    meter = metered(kit)
    assert not kit.publish().is_new
    assert meter.requests == {"get": 1, "put": 0, "list": 0, "delete": 0}


def test_many_small_changes_stay_few_requests_on_average(kit: Kit, tmp_path: Path) -> None:
    packs = objects(kit, "pack")
    meter = metered(kit)
    times = []
    for number in range(40):
        put(kit.directory, b"001", b"%d" % number)
        kit.publish()
        times.append(kit.dataset.read_head().manifest.published_at_ns)
    asked = sum(meter.requests.values()) - len(times) - (objects(kit, "pack") - packs)
    assert asked <= 5 * len(times)
    head = kit.dataset.read_head()
    assert 0 < len(head.head.former) <= 8
    assert not objects(kit, "intent")
    # Every seq is there, in the head or as an object.
    assert kit.dataset.seqs(head) == list(range(1, 42))
    for number, at_ns in enumerate(times, 2):
        assert kit.dataset.manifest_at(number).seq == kit.dataset.manifest_at_time(at_ns).seq == number
    kit.restore(tmp_path / "out", seq=40)
    assert (tmp_path / "out/001").read_bytes() == b"38"


@pytest.mark.parametrize("name", ["_INTENT_BYTES", "_INTENT_S"])
def test_a_long_publish_has_an_intent(kit: Kit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"synclib.engine.publish.{name}", -1)
    kit.write({**FILES, b"001": b"new"})
    meter = metered(kit)
    kit.publish()
    # Head, and again when the intent is written, and the intent before the head; pack, run, head, intent.
    assert meter.requests == {"get": 3, "put": 4, "list": 0, "delete": 1}


class Between(MemoryStore):
    """Does something once, before the next write of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.what: Callable[[], object] = lambda: None

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if key == HEAD:
            what, self.what = self.what, lambda: None
            what()
        return super().put(key, body, if_absent=if_absent, if_match=if_match)


@pytest.fixture
def between(tmp_path: Path) -> tuple[Kit, Between]:
    store = Between()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path, store)
    kit.write(FILES)
    kit.publish()
    kit.write({**FILES, b"001": b"new"})
    return kit, store


def test_a_collector_comes_before_the_head_is_replaced(between: tuple[Kit, Between], tmp_path: Path) -> None:
    """It takes the uploaded pack for garbage: the publish begins anew, and uploads it again."""
    kit, store = between
    store.what = lambda: collect(kit.dataset, kit.host, Retention(), None, no_progress)
    packs = objects(kit, "pack")
    done = kit.publish()
    assert (done.seq, done.changed) == (2, 1)
    assert objects(kit, "pack") == packs + 1
    assert not objects(kit, "intent")
    assert not kit.verify().damage
    kit.restore(tmp_path / "out")
    assert (tmp_path / "out/001").read_bytes() == b"new"


def test_another_publish_alone_makes_nobody_begin_anew(between: tuple[Kit, Between], tmp_path: Path) -> None:
    kit, store = between
    other = Kit(tmp_path / "other", store, seed=2)
    other.restore(other.directory)
    other.write({**FILES, b"002": b"theirs"})
    store.what = other.publish
    packs = objects(kit, "pack")
    assert kit.publish().seq == 3
    assert objects(kit, "pack") == packs + 2
    assert not kit.verify().damage


def test_who_is_overtaken_every_time_is_told(between: tuple[Kit, Between]) -> None:
    """Also with an intent a collector may come before each reading of the head."""
    kit, store = between
    numbers = iter(range(10, 100))

    def come() -> None:
        store.put(pack_key("data/covers", f"01J000000000000000000000{next(numbers)}"), b"x")
        collect(kit.dataset, kit.host, Retention(), None, no_progress)

    real = store.put

    def put_then_come(key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        etag = real(key, body, if_absent=if_absent, if_match=if_match)
        if "/intent/" in key and not list(store.list("data/covers/pack/01J")):
            come()
        return etag

    store.what = come
    store.put = put_then_come  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="is being collected"):
        kit.publish()
