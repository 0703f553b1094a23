"""What a test has the service do: fail, lose an answer, run out, be busy, be late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.aws.refusal import NoAnswer, Refused


@dataclass
class Delays:
    """Seconds that things take; from pending to running it is 16.5 s on all families of instances."""

    volume_create_s: float = 2.0
    attach_s: float = 2.0
    detach_s: float = 2.0
    delete_s: float = 2.0
    snapshot_s: float = 20.0
    complete_s: float = 5.0
    run_s: float = 16.5
    terminate_s: float = 30.0


@dataclass
class Limits:
    """Quotas (EC2 and EBS endpoints and quotas)."""

    pending_snapshots: int = 100
    pending_snapshots_per_volume: int = 5
    seconds_between_snapshots_of_a_volume: float = 15.0
    attachments_per_instance: int = 27
    volumes: int = 5000
    instances: int = 100
    puts_per_s: float = 1000.0
    gets_per_s: float = 1000.0
    starts_per_s: float = 10.0
    lists_per_s: float = 50.0
    describe_page: int = 100
    blocks_page: int = 10_000


@dataclass
class Script:
    """Asked before and after each operation; empty, the service does all it can.

    ``exhausted``: zones, or (zone, type) pairs, without capacity. ``busy_volumes``: their detach stays busy until they
    are taken out of the set. ``hidden_s``: for so long a new resource is not found. ``is_empty_page_first``: each
    listing of blocks begins with a page that holds nothing but the next token. ``reached`` is told of each operation
    before it is done, and again after, before its answer goes; what it raises is the answer. ``caller``: whose it is.
    """

    exhausted: set[str | tuple[str, str]] = field(default_factory=set)
    busy_volumes: set[str] = field(default_factory=set)
    hidden_s: float = 0.0
    is_empty_page_first: bool = False
    flipped_blocks: set[tuple[str, int]] = field(default_factory=set)
    caller: str = ""
    reached: Callable[[str, bool], None] = lambda operation, is_done: None
    _failures: dict[str, list[Refused]] = field(default_factory=dict)
    _lost: Counter[str] = field(default_factory=Counter)

    def fail(self, operation: str, refused: Refused, times: int = 1) -> None:
        """The next ``times`` calls of an operation (``*``: of any) are refused before anything is done."""
        self._failures.setdefault(operation, []).extend([refused] * times)

    def lose_answer(self, operation: str, times: int = 1) -> None:
        """The next ``times`` calls are carried out, and the connection closed without an answer."""
        self._lost[operation] += times

    def before(self, operation: str) -> None:
        self.reached(operation, False)
        for name in (operation, "*"):
            if self._failures.get(name):
                raise self._failures[name].pop(0)

    def after(self, operation: str) -> None:
        self.reached(operation, True)
        if self._lost[operation] > 0:
            self._lost[operation] -= 1
            raise NoAnswer
