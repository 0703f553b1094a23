"""The walls that other servers of the dataset show: a new server holds them too, for it may soon be the only one left.

A browser that learnt of a wall from a server which has ended asks whoever is there for the rest of its tiles.
"""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from render.walls import WALLS_KEPT, HeldWall, ListCovers, OpenReader, Walls, listed_covers, load_wall
from synclib.clock import Clock
from synclib.engine.registrations import registrations
from synclib.errors import BoxlinkError, Unavailable
from synclib.store.base import Store

_REGISTRATIONS_MAX = 1000
_TRIES, _PAUSE_S = 4, 0.25


def hold_walls_of_others(
    store: Store,
    dataset: str,
    walls: Walls,
    open_reader: OpenReader,
    log: FilteringBoundLogger,
    clock: Clock,
    list_covers: ListCovers = listed_covers,
) -> None:
    """Hold, behind the current wall, those of the seqs next to it that others serve. What cannot be had is logged."""
    current = walls.current
    if current is None:
        return
    try:
        seqs = _seqs(store, dataset) - {current.seq}
    except BoxlinkError as error:
        log.warning("what others serve is not known", **error.as_dict())
        return
    for seq in sorted(seqs, key=lambda seq: abs(seq - current.seq))[: WALLS_KEPT - 1]:
        try:
            wall = _loaded(lambda seq=seq: load_wall(open_reader, seq, None, list_covers, log), clock)  # type: ignore[misc]
        except BoxlinkError as error:
            log.warning("a wall that others serve is not held here", seq=seq, **error.as_dict())
            continue
        if not walls.hold(wall):
            wall.retire()
        log.info("a wall of others is held", wall=wall.id, seq=seq)


def _loaded(load: Callable[[], HeldWall], clock: Clock) -> HeldWall:
    """For a while again where the store does not answer: it is done once, and a server that starts can wait."""
    for number in range(_TRIES - 1):
        try:
            return load()
        except Unavailable:
            clock.sleep(_PAUSE_S * 2**number)
    return load()


def _seqs(store: Store, dataset: str) -> set[int]:
    """The seqs that servers of a dataset say they show."""
    found: set[int] = set()
    for _, _, registration in registrations(store, most=_REGISTRATIONS_MAX):  # the proxy says what cannot be read
        if registration.dataset == dataset and registration.seq:
            found.update({registration.seq, *registration.walls})
    return found
