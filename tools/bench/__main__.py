"""boxlink beside whatever of restic, borg, kopia, rclone and s5cmd is installed.

    make bench                                                20 KB files and large files, in a local directory
    make bench ARGS="--files 0 --large 0 --tree DIR"          a copy of a source tree, and its next release
    make bench ARGS="--s3 --large 0"                          on a real S3 server
    make bench ARGS="--s3-ms 20 --large 0"                    on one that is 20 ms away (toxiproxy)

Each round runs every tool once, in turn, on the same data, in fresh repositories on the same disk; what is printed are
medians and ratios to boxlink in the same round, and what the machine itself takes for the same files. Nothing else
should run meanwhile. All files are in the page cache, nothing waits to be written when a command starts; caches of a
tool's own are kept between its steps, but for those that read, which another machine does.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tools.bench.data import Shape
from tools.bench.measure import Bucket, measure
from tools.bench.meter import metered
from tools.bench.plot import plot
from tools.bench.report import report
from tools.bench.rivals import Tool, installed
from tools.bench.sample import OURS, Result


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers are stopped on the way out
    if arguments.again:
        for path in arguments.again:
            _write(msgspec.json.decode(path.read_bytes(), type=Result), path.parent, path.stem)
        return 0
    is_s3 = arguments.s3 or arguments.s3_ms is not None
    tools = [tool for tool in installed(is_s3=is_s3) if not arguments.only or tool.name in (OURS, *arguments.only)]
    place = Path(tempfile.mkdtemp(prefix="boxlink-bench-", dir=arguments.place))
    try:
        for shape in _shapes(arguments):
            with _bucket(place, arguments.s3_ms) if is_s3 else ExitStack() as bucket:
                _one_shape(arguments, shape, tools, place, bucket if isinstance(bucket, Bucket) else None)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=50_000, help="number of 20 KB files (default: %(default)s)")
    parser.add_argument("--large", type=int, default=8, help="number of 128 MB files (default: %(default)s)")
    parser.add_argument("--tree", type=Path, help="a source tree to copy")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--s3", action="store_true", help="on a real S3 server, rather than a local directory")
    parser.add_argument("--s3-ms", type=int, help="on a real S3 server so many milliseconds away, there and back")
    parser.add_argument("--only", nargs="*", help="only these tools, beside boxlink")
    parser.add_argument("--skip", nargs="*", default=[], help="steps left out, as TOOL:STEP (kopia:restore)")
    parser.add_argument("--place", type=Path, help="where data and repositories go (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write tables (.md), samples (.json) and a plot (.svg) there")
    parser.add_argument("--again", type=Path, nargs="*", help="make tables and plots anew from these samples (.json)")
    return parser


def _shapes(arguments: argparse.Namespace) -> list[Shape]:
    return [
        *([Shape("small", arguments.files)] if arguments.files else []),
        *([Shape("large", arguments.large)] if arguments.large else []),
        *([Shape("tree", origin=arguments.tree)] if arguments.tree else []),
    ]


@contextmanager
def _bucket(place: Path, milliseconds: int | None) -> Iterator[Bucket]:
    from tools import s3server
    from tools.bench.toxiproxy import delayed

    with ExitStack() as stack:
        server = stack.enter_context(s3server.running("bench", place))
        endpoint = stack.enter_context(delayed(server.endpoint, milliseconds)) if milliseconds else server.endpoint
        yield Bucket(stack.enter_context(metered(endpoint)), server.directory)


def _one_shape(
    arguments: argparse.Namespace, shape: Shape, tools: list[Tool], place: Path, bucket: Bucket | None
) -> None:
    store = "file://"
    if bucket:
        store = f"s3:// {arguments.s3_ms} ms away" if arguments.s3_ms else "s3://"
    samples, floors = measure(place, shape, tools, arguments.rounds, bucket, frozenset(arguments.skip))
    result = Result(
        shape=shape.title,
        store=store,
        machine=_machine(),
        date=time.strftime("%Y-%m-%d"),
        versions={tool.name: tool.version() for tool in tools},
        samples=samples,
        floors=floors,
    )
    print(report(result), flush=True)
    if arguments.out:
        name = "-".join([shape.name, store.partition(":")[0], *([f"{arguments.s3_ms}ms"] if arguments.s3_ms else [])])
        _write(result, arguments.out, name)


def _write(result: Result, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    plot(result, folder / f"{name}.svg")
    (folder / f"{name}.md").write_text(f"{report(result)}\n![Ratios to boxlink]({name}.svg)\n")


def _machine() -> str:
    processors, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{processors} processors, {memory / 2**30:.0f} GiB, {platform.system()} {platform.release().partition('-')[0]}"
        f", Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main())
