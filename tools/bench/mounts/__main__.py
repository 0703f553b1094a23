"""Lazy mounts beside one another: ``python -m tools.bench.mounts [--rounds N] [--files N] [--round-trip MS]``.

boxlink, and whatever of rclone, s3fs and restic is installed, before one S3 server some milliseconds away; and a block
device that waits at the first touch of each 512 KiB, as a volume made of a snapshot does. Each round every tool has
empty caches; what a start-up reads is the same in all rounds, all else is by chance and the same for all tools of a
round. Needs root, EROFS and FUSE, and Go for the server and the proxy. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools import s3server
from tools.bench.data import SMALL_BYTES
from tools.bench.mounts.contenders import Boxlink, Contender, installed
from tools.bench.mounts.data import Site, make_source
from tools.bench.mounts.lines import Amounts, seconds_of
from tools.bench.mounts.report import report
from tools.bench.toxiproxy import delayed

_FAULTS, _SMALL = 256, 2000
Round = dict[str, dict[str, float]]  # seconds by line, by tool


def main() -> int:
    arguments = _parser().parse_args()
    place = Path(tempfile.mkdtemp(prefix="boxlink-mounts-", dir=arguments.place))
    try:
        with (
            s3server.running(directory=place) as server,
            delayed(server.endpoint, arguments.round_trip) as far,
        ):
            site = Site(server, far, place / "source", place, arguments.round_trip / 1000)
            make_source(site.source, arguments.files, arguments.large)
            (place / "publisher").mkdir()
            contenders = [found for found in installed(site) if not arguments.only or found.name in arguments.only]
            for contender in contenders:
                _say(f"{contender.name}: is given the data")
                contender.put()
            head, rounds = _head(arguments, contenders), list[Round]()
            for taken in _rounds(contenders, site, arguments):
                rounds.append(taken)
                _write(arguments.out, head, contenders, rounds)
        print(report(head, [found.name for found in contenders], rounds), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def _write(out: Path | None, head: str, contenders: list[Contender], rounds: list[Round]) -> None:
    """After each round: one that is broken off takes nothing with it."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "mounts.md").write_text(report(head, [found.name for found in contenders], rounds))
        (out / "mounts.json").write_text(json.dumps({"head": head, "rounds": rounds}, indent=1) + "\n")


def _head(arguments: argparse.Namespace, contenders: list[Contender]) -> str:
    sizes = f"{arguments.files:,} files of {SMALL_BYTES // 1000} KB, one of {arguments.large} MiB"
    how = f"{arguments.round_trip} ms there and back; {arguments.rounds} rounds, the tools in turn"
    versions = "; ".join(f"{found.name}: {found.version()}" for found in contenders)
    said = [time.strftime("%Y-%m-%d"), _machine(), sizes, how, versions]
    return ". ".join(said)


def _rounds(contenders: list[Contender], site: Site, arguments: argparse.Namespace) -> Iterator[Round]:
    paths = site.small_files()
    amounts = Amounts(paths, random.Random(7).sample(paths, arguments.boot), _FAULTS, min(_SMALL, len(paths) // 2))
    for contender in contenders:
        if isinstance(contender, Boxlink) and contender.dataset == "bench":
            contender.record(site.place / "recorder", list(amounts.boot))
    for number in range(arguments.rounds):
        taken: Round = {}
        for contender in contenders:
            _say(f"round {number + 1} of {arguments.rounds}, {contender.name}")
            here = site.place / f"{number}-{contender.name.replace(' ', '-').replace(',', '')}"
            taken[contender.name] = seconds_of(contender, here, amounts, random.Random(number))
            shutil.rmtree(here, ignore_errors=True)
            os.sync()
        yield taken


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--files", type=int, default=20_000, help="of 20 KB (default: %(default)s)")
    parser.add_argument("--large", type=int, default=256, metavar="MIB", help="of the large one (default: %(default)s)")
    parser.add_argument("--boot", type=int, default=300, help="files of a start-up (default: %(default)s)")
    parser.add_argument("--round-trip", type=int, default=35, metavar="MS", help="default: %(default)s")
    parser.add_argument("--only", nargs="*", help="only these tools")
    parser.add_argument("--place", type=Path, help="where everything goes (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write a table (.md) and the samples (.json) there")
    return parser


def _machine() -> str:
    processors = len(os.sched_getaffinity(0))
    return f"{processors} processors, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
