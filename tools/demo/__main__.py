"""The demo: the whole of boxlink on this machine, one line a step. ``python -m tools.demo [--exit]``

COVERS=DIR takes pictures of your own; else covers are made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tools.demo.checks import Checks
from tools.demo.covers import make_covers
from tools.demo.first_tile import FirstTile
from tools.demo.processes import Demo, DemoError

COVER_COUNT = 600
PLACE = Path(".demo")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="check it and end, instead of staying up")
    parser.add_argument("--port", type=int, default=8080, help="where the wall is to be seen (default: %(default)s)")
    parser.add_argument("--count", type=int, default=COVER_COUNT, help="how many covers to make (default: %(default)s)")
    parser.add_argument("--lazy", action="store_true", help="a cold node that mounts, and its first tile (needs root)")
    parser.add_argument("--s3", action="store_true", help="on a real S3 server instead of a directory (needs Go)")
    arguments = parser.parse_args()
    # Its programs have sessions of their own: without this they would outlive a terminal that is closed, or a demo
    # that was started in the background, where shells ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        if not arguments.s3:
            return run(Demo(PLACE.resolve()), arguments)
        from tools import s3server

        with s3server.running() as server:
            return run(Demo(PLACE.resolve(), server.url, server.environment()), arguments)
    except KeyboardInterrupt:
        return 0  # before anything was started
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def run(demo: Demo, arguments: argparse.Namespace) -> int:
    try:
        start_all(demo, arguments)
        if arguments.exit:
            Checks(demo).run()
        else:
            demo.say(f"open http://127.0.0.1:{demo.port}/ in a browser; Ctrl-C stops all of it")
            demo.wait()
    except KeyboardInterrupt:
        pass  # the wish to end it, not an error
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        is_clean = demo.stop()
    demo.say("stopped" if is_clean else "something did not stop cleanly")
    return 0 if is_clean else 1


def start_all(demo: Demo, arguments: argparse.Namespace) -> None:
    covers = cover_directory(demo, arguments.count)
    demo.boxlink("init")
    done = demo.boxlink("publish", "covers", str(covers))
    demo.say(f"published {done['files']} files, {megabytes(done['bytes'])} MB, as seq {done['seq']} of 'covers'")
    demo.say(f"    in {done['seconds']} s, with requests {done['requests']}, ${done['usd']:.6f}")
    # What nobody asks for is not fetched, so that what the first tile takes can be told.
    lazily = ("--lazy", "--no-hydrate") if arguments.lazy else ()
    demo.start("sync", "--data", str(demo.data), "--poll", "1", *lazily)
    demo.wait_event("sync", "started")
    demo.say("a node is up on an empty data directory")
    demo.start("render", "--data", str(demo.data), "--dataset", "covers", "--listen", "127.0.0.1:0")
    demo.wait_for((demo.data / "covers/synch.active").exists, "render touches synch.active", "render")
    demo.say("render asked for it: data/covers/synch.active")
    first_tile = FirstTile(demo, done["bytes"]) if arguments.lazy else None
    demo.wait_for((demo.data / "covers/synch.down").exists, "synch.down", "sync")
    demo.say("the node answered: data/covers/synch.down")
    if first_tile is not None:
        first_tile.down()
    ready = demo.wait_event("render", "ready")
    if first_tile is not None:
        first_tile.ready(ready)
    demo.say(f"render is ready, and registers itself as {ready['registration']}")
    demo.start_proxy(arguments.port)
    demo.wait_for(lambda: demo.status("/wall.json") == 200, "the proxy finds render", "proxy")
    demo.say(f"the proxy found it, and serves on port {demo.port}")
    demo.wait_for(lambda: bool(demo.log_lines()), "a log line", "sync", seconds=60)
    demo.say(f"a log line, back from the store: {demo.log_lines()[0]}")


def cover_directory(demo: Demo, count: int) -> Path:
    """A directory with covers: a copy of COVERS, so that nobody's pictures are touched, or made ones."""
    target = demo.place / "covers"
    given = os.environ.get("COVERS")
    if given:
        if not Path(given).is_dir():
            raise DemoError(f"COVERS={given} is no directory")
        if not any(path.is_file() for path in Path(given).rglob("*")):
            raise DemoError(f"COVERS={given} has no pictures")
        shutil.copytree(given, target, symlinks=True)
        demo.say(f"covers are those in {given}")
    else:
        made = demo.place.parent / ".cache" / f"demo-covers-{count}"
        if not (made / "catalog.jsonl").exists():
            make_covers(made, count, seed=2008)
        shutil.copytree(made, target)
        demo.say(f"made {count} covers")
    return target


def megabytes(size: object) -> str:
    assert isinstance(size, int)
    return f"{size / 1e6:.1f}"


if __name__ == "__main__":
    started = time.monotonic()
    sys.exit(main())
