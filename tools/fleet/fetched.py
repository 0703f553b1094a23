"""The releases of local nodes stand beside them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tools.cli_context import Context
from tools.cli_engine import connect_of, open_host, progress_bar
from tools.fleet.release_place import Brought, fetch, parse_release, read_trust

RELEASES = ".releases"  # no node has such a name


def fetched(
    context: Context, local: Path, release: str, trust: Collection[Path], *, is_unsigned_allowed: bool
) -> Brought:
    """A release (NAME or NAME@SEQ), checked and ready to run beside the nodes below ``local``."""
    name, seq = parse_release(release)
    trusted = read_trust(trust, is_unsigned_allowed=is_unsigned_allowed)
    store = context.open_store()
    host, connect = open_host(context), connect_of(context)

    def say(text: str) -> None:
        context.note(f"boxlink: {text}")

    with progress_bar(context) as progress:
        return fetch(store, connect, name, seq, local / RELEASES, trusted, host, progress, say)
