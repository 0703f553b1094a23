"""What the verbs that run the engine share: the host, the dataset, worker connections, progress."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.manifest import Manifest
from synclib.core.names import dataset_root
from synclib.engine.host import Connect, Host, Progress, no_progress
from synclib.errors import BoxlinkError, Interrupted, Invalid
from synclib.lazy.dataset import Dataset, check_prefix
from synclib.store.base import Store
from tools.cli_context import Context, shown

if TYPE_CHECKING:
    from concurrent.futures import Executor


def path_within(option: str, given: str | None) -> bytes:
    """The file or folder of a dataset that an option names; the root where it was not given. Invalid where it is empty:
    a variable of a script that is not set would stand for everything."""
    if given is None:
        return b""
    if not given:
        raise Invalid(f"{option} is empty", hint=f"name a file or folder, or leave {option} out for all of the dataset")
    return check_prefix(given)


def open_host(context: Context) -> Host:
    """This machine: state in ``$XDG_STATE_HOME/boxlink``, caches in ``$XDG_CACHE_HOME/boxlink``."""
    home = Path.home()
    state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local/state") / "boxlink"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "boxlink"
    return Host(context.node, SystemClock(), SystemEntropy(), state, cache)


def open_dataset(context: Context, name: str) -> Dataset:
    root = dataset_root(name)
    return Dataset(context.open_store(), root)


def dataset_names(store: Store, *, with_head: bool = True, count_max: int | None = None) -> list[str]:
    """The datasets of a store, the first ``count_max`` of them; without ``with_head`` also those whose first publish
    never ended.

    A listing of a whole dataset's objects is spared: each is passed over by its name.
    """
    found: list[str] = []
    after = ""
    while count_max is None or len(found) < count_max:
        info = next(iter(store.list("data/", after=after)), None)
        if info is None:
            break
        name = info.key.split("/")[1]
        # "0" is the character after "/".
        after = f"data/{name}0"
        key = f"data/{name}/head"
        if not with_head or any(item.key == key for item in itertools.islice(store.list(key), 1)):
            found.append(name)
    return found


def each_dataset(
    context: Context, dataset: str | None, names: list[str], run: Callable[[str], dict[str, object]]
) -> None:
    """Run a verb on one dataset, or on all: then an error of one does not keep it from the others, and is told at the
    end. ``run`` makes a dataset's part of the one object; a member ``exit_code`` in it is the verb's."""
    results: list[dict[str, object]] = []
    code = 0
    for name in names if dataset is None else [dataset]:
        try:
            result = run(name)
        except Interrupted:
            raise
        except BoxlinkError as error:
            if dataset is not None:
                raise
            result = {"dataset": name, "error": error.as_dict(), "exit_code": error.exit_code}
            context.note(f"boxlink: {error.kind}: {name}: {error.message}")
            if error.hint:
                context.note(f"  hint: {error.hint}")
        code = code or cast(int, result.pop("exit_code", 0))
        results.append(result)
    context.emit(results[0] if dataset is not None else {"datasets": results}, costs_text(context))
    if code:
        raise click.exceptions.Exit(code)


def manifest_fields(manifest: Manifest) -> dict[str, object]:
    """What the one object of a verb says of the seq that it ends at."""
    return {
        "seq": manifest.seq,
        "digest": manifest.digest,
        "files": manifest.file_count,
        "bytes": manifest.plain_bytes,
    }


def say(context: Context, text: str) -> None:
    """A line of the answer for a person."""
    if not context.is_json and not context.is_quiet:
        click.echo(shown(text))


def connect_of(context: Context) -> Connect | None:
    """How worker processes reach the store; None for a store that lives in this process."""
    if context.url.startswith("memory:"):
        return None
    return Connect(context.url, tuple(sorted(context.s3_settings().items())))


def executor_of(context: Context, preload: str, dask: str | None) -> Callable[[], Executor] | None:
    """What makes the executor of a bulk pass: a cluster's, worker processes that have ``preload`` imported, or none."""
    if dask is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise Invalid("Dask is not installed", hint="pip install 'boxlink[dask]'") from error

        def of_cluster() -> Executor:
            client = Client(dask)  # type: ignore[no-untyped-call]
            executor: Executor = client.get_executor()  # type: ignore[no-untyped-call]
            shutdown = executor.shutdown

            def end(wait: bool = True, *, cancel_futures: bool = False) -> None:
                # Who made the client closes it: the executor leaves it connected.
                shutdown(wait=wait)
                client.close()  # type: ignore[no-untyped-call]

            executor.shutdown = end  # type: ignore[method-assign]
            return executor

        return of_cluster
    if connect_of(context) is None:
        return None
    from synclib.engine.workers import start_processes, worker_count

    count = worker_count() * (2 if context.url.startswith("s3:") else 1)
    return lambda: start_processes(preload, count)


# What is counted in pieces; all else in bytes.
_COUNTED = {"scanned", "verified", "swept"}


@contextmanager
def progress_bar(context: Context) -> Iterator[Progress]:
    """A progress display on a terminal; nothing elsewhere."""
    if context.is_quiet or context.is_json or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int) -> None:
            text = f"{done:,}" if what in _COUNTED else size_text(done)
            if total:
                text += f" of {total:,}" if what in _COUNTED else f" of {size_text(total)}"
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None, done=text)
            bar.update(tasks[what], completed=done, total=total or None, done=text)  # type: ignore[arg-type]

        yield show


def path_text(path: bytes) -> str:
    """A path as JSON and terminals show it; bytes that are no UTF-8 as surrogate escapes, safe to print."""
    return os.fsdecode(path)


def printable(path: bytes) -> str:
    """A path for a terminal: control characters and undecodable bytes are shown, not sent."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def time_text(time_ns: int) -> str:
    """RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 time, to its end: times are shown in whole seconds, and a whole second
    means all of it. Local time where it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is no time", hint="write 2026-11-24T08:00:00Z") from error
    return int(moment.timestamp()) * 1_000_000_000 + (moment.microsecond * 1000 or 999_999_999)


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def seqs_text(seqs: list[int]) -> str:
    """Seqs for people: 1-3, 5, 9-12."""
    spans: list[list[int]] = []
    for seq in seqs:
        if spans and seq == spans[-1][1] + 1:
            spans[-1][1] = seq
        else:
            spans.append([seq, seq])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def costs_text(context: Context) -> str:
    """Requests, bytes and dollars of this run for people."""
    meter = context.costs()
    if meter is None:
        return ""
    requests = ", ".join(f"{number} {verb}" for verb, number in meter.requests.items() if number) or "no requests"
    seconds = time.monotonic() - context.started
    return (
        f"{requests}; {size_text(meter.bytes_up)} up, {size_text(meter.bytes_down)} down; "
        f"${meter.usd:.6f}; {seconds:.1f} s"
    )
