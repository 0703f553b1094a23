"""How much work on this machine waits for its disks (Documentation/accounting/psi.rst)."""

from __future__ import annotations

_IO = "/proc/pressure/io"


def io_pressure() -> float:
    """The part of the last ten seconds, 0 to 1, in which all that wanted to run waited for a disk; 0 where the kernel
    does not say."""
    try:
        with open(_IO, encoding="ascii") as file:
            return parse_full(file.read())
    except (OSError, ValueError):
        return 0.0


def parse_full(text: str) -> float:
    """``avg10`` of the line ``full``. ValueError for anything else."""
    for line in text.splitlines():
        kind, _, fields = line.partition(" ")
        if kind == "full":
            name, _, value = fields.split()[0].partition("=")
            if name == "avg10":
                return float(value) / 100
    raise ValueError("no pressure is told")
