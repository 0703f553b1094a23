"""Whether work advances: who is late, and who is not."""

from __future__ import annotations

from synclib.core.pulse import BULK_S, STEP_S, Pulse


def test_who_is_not_heard_of_in_its_time_is_late() -> None:
    pulse = Pulse()
    assert pulse.late(1e9) == []
    pulse.beat("a", 100.0)
    pulse.beat("b", 100.0, BULK_S)
    assert pulse.late(100.0 + STEP_S) == []
    assert pulse.late(100.1 + STEP_S) == ["a"]
    assert pulse.late(100.1 + BULK_S) == ["a", "b"]
    pulse.beat("a", 100.0 + STEP_S)
    assert pulse.late(100.1 + STEP_S) == []
    pulse.end("a")
    pulse.end("b")
    pulse.end("never began")
    assert pulse.late(1e9) == []
