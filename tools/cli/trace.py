"""What start-up traces hold, and the word that a start-up is over."""

from __future__ import annotations

from pathlib import Path

import click

from tools.cli_context import Context, verb

_SHOWN = 20


@click.group()
def command() -> None:
    """Look at start-up traces (show), or say that a start-up is over (stop)."""


@command.command()
@click.argument("dataset")
@verb
def show(context: Context, dataset: str) -> None:
    """Say what the start-up traces of DATASET hold, and what their replay costs at its newest seq.

    A trace is what a node read first, in order. The last three are joined: a mount fetches that ahead of its readers.
    """
    from synclib.core.hydration import trace_units
    from synclib.core.trace import union
    from synclib.engine.traces import locate, read_traces
    from synclib.lazy.chain import Chain
    from synclib.lazy.run_cache import RunCache
    from synclib.store.meter import Meter
    from tools.cli_engine import manifest_fields, open_dataset, open_host, path_text, size_text, time_text

    opened = open_dataset(context, dataset)
    host = open_host(context)
    manifest = opened.manifest_at(None)
    traces = read_traces(opened)
    touches = union(traces)
    runs = RunCache(host.dataset_cache(opened.store.url, opened.root) / "run", opened.store)
    with runs.in_use():
        found = list(locate(Chain.of(runs, opened.root, manifest.runs), touches))
    units = trace_units(found)
    meter = Meter()
    meter.count("get", requests=len(units), down=sum(unit.range_bytes for unit in units))
    here = {extent.position for _, extent in found}
    result: dict[str, object] = {
        "dataset": dataset,
        **manifest_fields(manifest),
        "traces": [
            {
                "seq": trace.seq,
                "node": trace.node,
                "recorded_at": time_text(trace.recorded_at_ns),
                "touches": len(trace.touches),
                "milliseconds": max((touch.at_ms for touch in trace.touches), default=0),
            }
            for trace in traces
        ],
        "touched_files": len({touch.path for touch in touches}),
        "replay": {"chunks": len(here), **meter.as_dict()},
        "touches": [
            {"path": path_text(touch.path), "offset": touch.offset, "length": touch.length, "at_ms": touch.at_ms}
            for touch in touches
        ],
    }
    lines = [
        f"seq {trace.seq}, {time_text(trace.recorded_at_ns)}, {trace.node}: {len(trace.touches):,} places"
        for trace in traces
    ]
    lines += [f"{touch.at_ms:>9,} ms  {path_text(touch.path)}  {touch.offset:,}+{touch.length:,}" for touch in touches][
        :_SHOWN
    ]
    if len(touches) > _SHOWN:
        lines.append(f"and {len(touches) - _SHOWN:,} places more (--json has all)")
    lines.append(
        f"replay at seq {manifest.seq}: {len(here):,} chunks, {size_text(meter.bytes_down)} in {len(units):,} requests,"
        f" ${meter.usd:.6f}"
    )
    context.emit(result, "\n".join(lines) if traces else f"{dataset} has no trace yet")


@command.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@verb
def stop(context: Context, directory: Path) -> None:
    """Say that whoever reads the mount on DIR is ready: what was read until now is its start-up's trace."""
    import os

    from synclib.errors import Missing
    from tools.cli_engine import open_host
    from tools.mount_spec import READY
    from tools.mounted import find_mount, is_served

    target = os.path.realpath(directory)
    state = open_host(context).state
    found = find_mount(state, target)
    if found is None or not is_served(found[1]):
        raise Missing("boxlink has mounted nothing there", path=target)
    found[0].joinpath(READY).touch()
    context.emit({"directory": target, "seq": found[1].prepared.seq}, "the start-up is over")
