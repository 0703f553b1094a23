"""Packing the bootstrap: one file that Python runs, the same bytes each time it is made of the same sources."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_PACKAGE = "boxlink_bootstrap"
_MAIN = f"""\
import sys
from pathlib import Path

from {_PACKAGE}.command import run

sys.exit(run(sys.argv[1:], Path(sys.argv[0]).resolve()))
"""
_FIRST_LINE = b"#!/usr/bin/env python3\n"


def build_bootstrap() -> bytes:
    """The zipapp (PEP 441)."""
    here = Path(__file__).parent
    sources = {f"{_PACKAGE}/{path.name}": path.read_bytes() for path in here.glob("*.py") if path.name != "build.py"}
    sources["__main__.py"] = _MAIN.encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(sources):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, sources[name], zipfile.ZIP_DEFLATED)
    return _FIRST_LINE + packed.getvalue()
