"""Which snapshots may go: by age, by number, by both, and what is unfinished."""

from __future__ import annotations

import pytest

from synclib.core.manifest import Manifest
from synclib.core.snapshot_tags import SnapshotTags
from synclib.engine.snapshots import Confirmed, Found, Known, kept_because
from synclib.volume.base import Snapshot, SnapshotState

DAY_NS = 86400 * 10**9
NOW_NS = 1000 * DAY_NS
DIGEST = "5" * 64


def known(
    seq: int,
    days: float,
    *,
    state: SnapshotState = SnapshotState.COMPLETED,
    is_tagged: bool = True,
    in_use: str = "",
) -> Known:
    """A snapshot of a seq that was begun so many days ago."""
    tags = SnapshotTags("file:///s", "covers", seq, DIGEST, is_complete=is_tagged, in_use=in_use)
    return Known(Snapshot(f"snap-{seq}", 1, state, NOW_NS - int(days * DAY_NS)), tags)


def going(
    snapshots: list[Known],
    keep_last: int | None,
    older_than_days: float | None,
    newest: int | None = 9,
    refused: dict[str, str] | None = None,
) -> list[int]:
    """Seqs of those that may go; ``newest``: the seq that the store confirms."""
    found = Found(sorted(snapshots, key=lambda one: -one.tags.seq), refused or {})
    confirmed = None
    if newest is not None:
        (one,) = (one for one in snapshots if one.tags.seq == newest)
        confirmed = Confirmed(one, Manifest(newest, b"", 0, 0, 0, [], [], 0, "n"))
    older_ns = None if older_than_days is None else int(older_than_days * DAY_NS)
    kept = kept_because(found, confirmed, keep_last, older_ns, NOW_NS)
    assert all(kept.values())
    return [one.tags.seq for one in found.snapshots if one.snapshot.id not in kept]


DAILY = [known(seq, 9 - seq) for seq in range(1, 10)]  # seq 9 is of today, seq 1 eight days old


@pytest.mark.parametrize(
    ("keep_last", "older_than_days", "seqs"),
    [
        (3, None, [6, 5, 4, 3, 2, 1]),
        (None, 5.0, [4, 3, 2, 1]),  # exactly so old is old enough
        (None, 5.1, [3, 2, 1]),
        # Both: it has to be older, and not one of the last.
        (3, 5.0, [4, 3, 2, 1]),
        (7, 5.0, [2, 1]),
        (3, 0.0, [6, 5, 4, 3, 2, 1]),
        (9, 0.0, []),
        (3, 100.0, []),
        # The newest stays whatever is asked.
        (0, 0.0, [8, 7, 6, 5, 4, 3, 2, 1]),
        (None, 0.0, [8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_by_number_and_by_age(keep_last: int | None, older_than_days: float | None, seqs: list[int]) -> None:
    assert going(DAILY, keep_last, older_than_days) == seqs


UNFINISHED = [
    {"state": SnapshotState.PENDING, "is_tagged": False},
    {"state": SnapshotState.PENDING, "is_tagged": True},
    {"state": SnapshotState.ERROR, "is_tagged": False},
    {"state": SnapshotState.COMPLETED, "is_tagged": False},
]


@pytest.mark.parametrize("how", UNFINISHED)
def test_what_is_unfinished_goes_by_its_age_alone(how: dict[str, object]) -> None:
    """A young one may be being made. It is none of the last that are kept: it holds nothing anybody can start from."""
    young, old = known(10, 0.5, **how), known(3, 6, **how)  # type: ignore[arg-type]
    rest = [one for one in DAILY if one.tags.seq not in (3, 10)]
    assert going([*rest, young, old], 2, None) == [7, 6, 5, 4, 2, 1], "by number alone neither"
    assert going([*rest, young, old], 8, 5.0) == [3], "old: it counts for none of the last eight"
    assert going([*rest, young, old], 7, 5.0) == [3, 1]
    assert going([*rest, young, old], None, 0.1) == [10, 8, 7, 6, 5, 4, 3, 2, 1]


def test_what_somebody_needs_stays_finished_or_not() -> None:
    needed = [known(2, 50, in_use="render-000001"), known(1, 60, is_tagged=False, in_use="snapshot")]
    assert going([*needed, known(3, 40), known(9, 0)], 1, 1.0) == [3]


def test_without_a_confirmed_one_none_goes() -> None:
    assert going(DAILY, 1, 0.0, newest=None) == []


def test_one_that_the_store_refutes_takes_no_place_of_a_good_one() -> None:
    """The newest by its tag is refused: it is not one of the last, and goes by its age."""
    wrong = known(12, 3)
    refused = {"snap-12": "it says seq 12, and the head is at 9"}
    assert going([*DAILY, wrong], 2, None, refused=refused) == [12, 7, 6, 5, 4, 3, 2, 1]
    assert going([*DAILY, wrong], 2, 4.0, refused=refused) == [5, 4, 3, 2, 1]


def test_a_clock_that_is_behind_lets_none_go() -> None:
    assert going([known(9, -2), known(8, -1)], 1, 0.5) == []


def test_each_that_stays_says_why() -> None:
    snapshots = [
        known(9, 0), known(8, 1), known(7, 2), known(6, 3, in_use="render-000001"), known(5, 1, is_tagged=False),
    ]  # fmt: skip
    confirmed = Confirmed(snapshots[0], Manifest(9, b"", 0, 0, 0, [], [], 0, "n"))
    assert kept_because(Found(snapshots, {}), confirmed, 2, None, NOW_NS) == {
        "snap-9": "the newest that the store confirms",
        "snap-8": "one of the last 2",
        "snap-6": "render-000001 needs it (its tag boxlink:in-use)",
        "snap-5": "not complete: it may be being made, and goes by its age alone",
    }
    assert kept_because(Found(snapshots[:3], {}), confirmed, None, 2 * DAY_NS, NOW_NS)["snap-8"] == "not old enough"
