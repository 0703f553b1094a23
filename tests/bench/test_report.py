"""The benchmark's tables: ratios are of the same round."""

from __future__ import annotations

from tools.bench.report import report
from tools.bench.sample import STEPS, Result, Sample

FLOORS = {"read + sha256": 1.0, "scandir + stat": 0.5, "tar xf": 1.0, "cp -r": 1.0, "interpreter start": 0.1}


def result() -> Result:
    """The second round was ten times slower for both: the ratio is 2 and 3 all the same."""
    seconds = {"boxlink": (1.0, 10.0), "restic": (2.0, 30.0)}
    samples = [
        Sample(tool, step, number, seconds[tool][number], 1.0, 50_000_000, 0.0, 1_000_000, {"GET": number + 1})
        for tool in seconds
        for step in STEPS
        for number in (1, 0)
    ]
    return Result("A", "s3://", "machine", "today", {"boxlink": "1", "restic": "2"}, samples, [FLOORS, FLOORS])


def test_ratios_are_of_pairs_of_one_round() -> None:
    assert result().ratios("restic", "publish", lambda sample: sample.seconds) == [2.0, 3.0]
    assert "| restic | 16.00 (**2.50**: 2.00 to 3.00) |" in report(result())


def test_every_step_has_its_requests_and_every_floor_its_ratio() -> None:
    text = report(result())
    assert text.count("| 2 GET |") >= 1
    assert "| read + sha256 | 1.000 | publish: 5.50 |" in text
