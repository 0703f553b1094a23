"""The registrations that servers have written into the store, as they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from synclib.core.registration import REGISTRATION_BYTES_MAX, Registration, parse_registration
from synclib.errors import Corrupt, Invalid, Missing
from synclib.store.base import Store, in_spite_of_strangers

REGISTRATIONS_MAX = 10_000
PREFIX = "proxy/"


class Registered(NamedTuple):
    key: str
    etag: str
    registration: Registration


def registrations(
    store: Store, problem: Callable[[str], None] = lambda _: None, most: int = REGISTRATIONS_MAX
) -> Iterator[Registered]:
    """Of the first ``most`` objects; ``problem`` is told of what cannot be read, which is passed over."""
    for info in islice(in_spite_of_strangers(store.list(PREFIX), problem), most):
        try:
            fetched = store.get(info.key, size_max=REGISTRATION_BYTES_MAX)
            assert fetched is not None
            yield Registered(info.key, fetched.etag, parse_registration(fetched.data))
        except Missing:
            continue
        except (Corrupt, Invalid) as error:
            problem(f"{info.key}: {error.message}")
