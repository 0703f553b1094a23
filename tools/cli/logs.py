"""Read the logs that nodes sent up."""

from __future__ import annotations

import json
import sys

import click

from tools.cli_context import Context, shown_in_line, verb


@click.command()
@click.argument("node", required=False, default="")
@click.option("--since", metavar="TIME", help="Only lines that say a later time, such as 2026-11-24T08:00:00Z.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@verb
def command(context: Context, node: str, since: str | None, follow: bool) -> None:
    """Read the logs that NODE (by default every node) sent up.

    \b
    boxlink logs
    boxlink logs render-1 --since 2026-11-24T08:00:00Z
    boxlink logs --follow

    Lines are headed by node/file. --since judges lines of JSON by their field "at"; others pass. On a terminal lines of
    JSON are shown as words; into a file or a pipe they go as they were written.
    """
    import time

    from synclib.engine.log_reader import LogReader
    from synclib.errors import Missing
    from tools.cli_engine import parse_time

    reader = LogReader(context.open_store(), node)
    since_ns = parse_time(since) if since else 0
    rest: dict[str, bytes] = {}
    listed: list[dict[str, str]] | None = [] if context.is_json and not follow else None
    is_for_eyes = sys.stdout.isatty()
    while True:
        for _, found_node, file, data in reader.read():
            stream = f"{found_node}/{file}"
            *lines, rest[stream] = (rest.get(stream, b"") + data).split(b"\n")
            for line in lines:
                _show(context, stream, line, since_ns, listed, is_for_eyes=is_for_eyes)
        told = len(reader.failed)
        for error in reader.failed:
            context.note(f"boxlink: {error.kind}: {error.key}: {error.message}; it is passed over")
        if not follow:
            break
        reader.failed.clear()
        time.sleep(1)
    if node and not rest and not told:
        raise Missing(f"node {node} has sent no logs", hint="boxlink logs shows those of all nodes")
    for stream, line in rest.items():
        if line:
            _show(context, stream, line, since_ns, listed, is_for_eyes=is_for_eyes)
    if listed is not None:
        context.emit({"lines": listed, "failed": [error.as_dict() for error in reader.failed]})
    if reader.failed:
        raise click.exceptions.Exit(reader.failed[0].exit_code)


def _show(
    context: Context,
    stream: str,
    line: bytes,
    since_ns: int,
    listed: list[dict[str, str]] | None,
    *,
    is_for_eyes: bool,
) -> None:
    """Into ``listed``, which becomes the one object; else at once: as it is into a file, made safe on a terminal."""
    from tools.log_text import line_text

    if since_ns and not _is_later(line, since_ns):
        return
    text = line.decode("utf-8", "replace")
    if listed is not None:
        listed.append({"stream": stream, "line": text})
    elif context.is_json:
        click.echo(json.dumps({"stream": stream, "line": text}))
    else:
        click.echo(f"{stream}: {shown_in_line(line_text(text)) if is_for_eyes else text}")


def _is_later(line: bytes, since_ns: int) -> bool:
    """Whether a line of JSON says a later time; other lines pass."""
    from synclib.errors import Invalid
    from tools.cli_engine import parse_time

    try:
        at = json.loads(line)["at"]
        return parse_time(at) >= since_ns
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, Invalid):
        return True
