"""What one scrape of `boxlink sync` says, from figures that are given."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from synclib.engine.node_figures import Followed, NodeFigures
from synclib.store.meter import Meter
from tools.sync_metrics import Seen, exposition

Labels = tuple[tuple[str, str], ...]


def samples(seen: Seen) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name.removeprefix("boxlink_"), tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(seen).decode())
        for sample in family.samples
    }


def seen(datasets: dict[str, Followed], mounts: list[dict[str, Any]] | None = None, late: tuple[str, ...] = ()) -> Seen:
    meter = Meter()
    meter.count("get", requests=7, down=500)
    meter.count("put", up=20)
    return Seen(NodeFigures(1000.0, 998.0, datasets, 11, 12, 13), meter, mounts or [], 5000.0, 4000.0, late)


def test_a_dataset_that_follows_and_one_that_does_not() -> None:
    well = Followed(5, True, 5, 4_900_000_000_000, polled_at=995.0)
    ill = Followed(3, False, 8, 4_000_000_000_000, 700.0, 900.0, 950.0, 2, Counter({"unavailable": 4, "corrupt": 1}))
    found = samples(seen({"covers": well, "maps": ill}, late=("maps",)))
    covers, maps = (("dataset", "covers"),), (("dataset", "maps"),)
    wanted = {
        "seq": (5, 3), "head_seq": (5, 8), "head_age_seconds": (100, 1000), "poll_age_seconds": (5, 300),
        "lag_seconds": (0, 100), "failing_seconds": (0, 50), "remounts_total": (0, 2),
    }  # fmt: skip
    for name, values in wanted.items():
        assert (found[f"sync_{name}", covers], found[f"sync_{name}", maps]) == values, name
    assert found["sync_hydrated_ratio", covers] == 1
    assert ("sync_hydrated_ratio", maps) not in found, "nobody knows"
    assert found["sync_errors_total", (("kind", "unavailable"),)] == 4
    assert found["sync_errors_total", (("kind", "corrupt"),)] == 1
    assert found["sync_requests_total", (("verb", "get"),)] == 7
    assert found["sync_bytes_total", (("direction", "down"),)] == 500
    assert found["sync_bytes_total", (("direction", "up"),)] == 20
    assert [found[f"sync_{name}", ()] for name in ("log_backlog_bytes", "log_dropped_bytes_total", "stuck")] == [
        11, 12, 1,
    ]  # fmt: skip
    assert (found["sync_log_segments_total", ()], found["sync_round_age_seconds", ()]) == (13, 2)
    assert found["sync_start_time_seconds", ()] == 4000


def test_what_is_not_known_is_not_said() -> None:
    found = samples(seen({"covers": Followed()}))
    of_covers = {name for name, labels in found if labels == (("dataset", "covers"),)}
    assert of_covers == {"sync_seq", "sync_lag_seconds", "sync_failing_seconds", "sync_remounts_total"}


def test_mounts_are_in_the_same_scrape_and_the_newer_of_two_seqs_counts() -> None:
    row = {"dataset": "covers", "state": "serving", "reads": 9}
    mounts = [
        {**row, "directory": "/d/2", "seq": 2, "hydrated_percent": 25.0},
        {**row, "directory": "/d/1", "seq": 1, "hydrated_percent": 100.0},
    ]
    found = samples(seen({"covers": Followed(2)}, mounts))
    assert found["sync_hydrated_ratio", (("dataset", "covers"),)] == 0.25
    assert found["mount_hydrated_ratio", (("dataset", "covers"), ("directory", "/d/2"))] == 0.25
    assert found["mount_reads_total", (("dataset", "covers"), ("directory", "/d/1"))] == 9
