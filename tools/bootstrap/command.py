"""The zipapp's command line; ``boxlink bootstrap`` has the same."""

from __future__ import annotations

import sys
from pathlib import Path

from .failure import Failure
from .log import Log
from .main import ROOT, TRUSTED, Options, boot

USAGE = "usage: bootstrap.pyz [--user-data FILE] [--root DIR] [--trusted DIR] [--imds v1|v2] [--no-run]"


def parse(words: list[str], own: Path | None) -> Options:
    """Options; Failure for what is none. (argparse takes as long to import as all the rest.)"""
    found: dict[str, str] = {}
    is_run = True
    rest = iter(words)
    for word in rest:
        if word == "--no-run":
            is_run = False
            continue
        value = next(rest, None)
        if word not in ("--user-data", "--root", "--trusted", "--imds") or value is None:
            raise Failure(f"{word!r} is no option, or lacks its value", USAGE)
        found[word] = value
    if found.get("--imds", "v2") not in ("v1", "v2"):
        raise Failure("--imds is v1 or v2", USAGE)
    user_data = found.get("--user-data")
    return Options(
        Path(found.get("--root", ROOT)).absolute(),
        None if user_data is None else Path(user_data),
        Path(found.get("--trusted", TRUSTED)),
        found.get("--imds") == "v1",
        is_run,
        own,
        words,
    )


def run(words: list[str], own: Path | None) -> int:
    """The exit code; does not return where a role is started."""
    if words in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    try:
        options = parse(words, own)
    except Failure as error:
        print(f"boxlink bootstrap: {error}", file=sys.stderr)
        return 2
    log = Log(options.root / "data/log/bootstrap.log")
    try:
        boot(options, log)
    except Failure as error:
        log.failed(error.message, error.hint)
        return 1
    except OSError as error:
        log.failed(f"{type(error).__name__}: {error}", "see the disk and the rights there")
        return 1
    return 0
