"""Whether instances of a release will boot: looked at before any is paid for, with the bootstrap's own rule.

Who is told a release that nobody signed boots only with the SHA-256 of its boot tar in the user-data.
"""

from __future__ import annotations

from synclib.core.release import Statement
from synclib.engine.release import read_statement
from synclib.store.base import Store
from tools.fleet.release_place import Trust, parse_release


class BootPins:
    """Of the releases of a store; each statement is read once."""

    def __init__(self, store: Store, trust: Trust) -> None:
        self._store, self._trust = store, trust
        self._read: dict[str, Statement] = {}

    def check(self, release: str) -> None:
        """Invalid for a release (NAME@SEQ) that is not trusted here; Missing where there is none."""
        if release:
            self._trust.check(self._statement(release))

    def of(self, release: str) -> str:
        """What user-data pins: empty for one that is signed, which the instance checks by its own keys."""
        if not release:
            return ""  # an instance that no launch of ours has tagged
        statement = self._statement(release)
        return "" if statement.key else statement.boot_sha256

    def _statement(self, release: str) -> Statement:
        if release not in self._read:
            name, seq = parse_release(release)
            self._read[release] = read_statement(self._store, name, seq)
        return self._read[release]
