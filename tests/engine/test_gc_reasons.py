"""What a collection says of what it keeps: why, how many, and when the next step may come."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.clock import ManualClock, SeededEntropy, ulid_text
from synclib.core.lease import LEASE_S
from synclib.core.names import pack_key
from synclib.core.retention import Retention
from synclib.engine.collect import CollectResult, collect
from synclib.engine.host import Host, no_progress
from synclib.engine.lease import Holder, intent, pin
from synclib.engine.tags import set_tag
from tests.kit import Kit
from tools.cli_engine import time_text
from tools.gc_text import reasons

START_NS = 1_800_000_000 * 10**9


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Six seqs, and a clock that only moves when it is told to."""
    kit = Kit(tmp_path)
    kit.host = Host("n1", ManualClock(wall_ns=START_NS), SeededEntropy(1), tmp_path / "state", tmp_path / "cache")
    for seq in range(1, 7):
        kit.write({b"a": b"%d" % seq * 100})
        kit.publish()
    return kit


def gc(kit: Kit, retention: Retention, *, is_dry_run: bool = False) -> tuple[CollectResult, list[str]]:
    done = collect(kit.dataset, kit.host, retention, None, no_progress, is_dry_run=is_dry_run)
    return done, list(reasons(done, is_dry_run=is_dry_run))


def orphan(kit: Kit, holder: Holder) -> None:
    kit.store.put(pack_key(kit.dataset.root, ulid_text(holder.mint())), b"half a publish")


def test_without_a_rule_everything_is_kept_and_nothing_is_there_to_delete(kit: Kit) -> None:
    gc(kit, Retention())
    done, said = gc(kit, Retention())
    assert done.reached == sum(info.key.count("/") == 3 or "/run/" in info.key for info in kit.store.list("data/"))
    assert said == [
        "6 seqs are kept because neither --keep options nor [gc] let any go",
        f"nothing to delete: each of {done.reached} objects is needed by a seq that is kept",
    ]


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_each_seq_is_kept_for_a_reason(kit: Kit, is_dry_run: bool) -> None:
    set_tag(kit.dataset, kit.host, "good", 1)
    pin(kit.dataset, kit.host).take(kit.dataset.read_head(), 3)
    done, said = gc(kit, Retention(last=2), is_dry_run=is_dry_run)
    assert done.kept_seqs == [1, 3, 5, 6]
    assert done.kept_by == {"newest": 1, "rule": 1, "tag": 1, "lease": 1}
    assert said == [
        "4 seqs are kept: 1 as the newest, 1 by --keep or [gc], 1 by tags, 1 by who reads or publishes",
    ]


def test_what_is_held_is_said_with_who_and_when_until_it_is_gone(kit: Kit) -> None:
    holder = intent(kit.dataset, kit.host)
    holder.take(kit.dataset.read_head(), 6)
    orphan(kit, holder)
    clock = kit.host.clock
    assert isinstance(clock, ManualClock)
    done, said = gc(kit, Retention())
    first = time_text(START_NS + LEASE_S * 10**9)
    assert (done.held, done.next_step_ns) == (1, START_NS + LEASE_S * 10**9)
    assert said[1].startswith(f"1 object more is held: by n1 ({holder.key}); gc again when that is done.")
    assert f"a gc after {first}" in said[1]
    clock.sleep(LEASE_S + 10)
    done, said = gc(kit, Retention())
    second = time_text(START_NS + (2 * LEASE_S + 10) * 10**9)
    assert (done.held, done.is_ended) == (1, True)
    assert said[1].endswith(f"silent for more than a day; a gc after {second} deletes what is held")
    clock.sleep(LEASE_S + 10)
    done, said = gc(kit, Retention())
    assert done.swept["packs"][0] == 1
    assert len(said) == 1


def test_a_replication_keeps_everything(kit: Kit) -> None:
    holder = intent(kit.dataset, kit.host)
    holder.take(kit.dataset.read_head(), holds_all=True)
    done, said = gc(kit, Retention(last=1))
    assert done.swept == {}
    assert len(said) == 1
    assert said[0].startswith("a replication is at work, or was killed")
    assert holder.key in said[0]
