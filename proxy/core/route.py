"""Which registrations handle a path: exact paths first, then the longest prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class RouteTable(Generic[T]):
    """Patterns (``/tiles/*`` or an exact path) to the backends that registered them. Immutable: replaced whole."""

    def __init__(self, handles: Mapping[T, Sequence[str]]) -> None:
        pools: dict[bytes, list[T]] = {}
        for backend, patterns in handles.items():
            for pattern in patterns:
                pool = pools.setdefault(pattern.encode(), [])
                if backend not in pool:
                    pool.append(backend)
        self._exact = {pattern: pool for pattern, pool in pools.items() if not pattern.endswith(b"*")}
        prefixes = {pattern[:-1]: pool for pattern, pool in pools.items() if pattern.endswith(b"*")}
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0]))

    def pools(self, path: bytes) -> Iterator[list[T]]:
        """The backends of each pattern that matches, the most specific pattern first."""
        if path in self._exact:
            yield self._exact[path]
        for prefix, pool in self._prefixes:
            if path.startswith(prefix):
                yield pool
