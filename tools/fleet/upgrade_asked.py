"""What ``boxlink upgrade`` was asked, as the words of its command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tools.cli_machine import machine_words

READY_S, BAKE_S = 120.0, 5.0  # as the command line has them by default


@dataclass(frozen=True)
class Asked:
    """The words of the command. ``machine``: of EC2 (tools/cli_machine.py)."""

    role: str
    local: Path | None
    release: str | None
    seq: str | None
    snapshot: str | None
    is_swap: bool
    driver_name: str | None
    pool: Path | None
    proxy_address: str | None
    batch: int
    ready_s_max: float
    bake_s: float
    trust: tuple[Path, ...]
    is_unsigned_allowed: bool
    values: tuple[str, ...]
    machine: tuple[str | None, tuple[str, ...], tuple[str, ...], tuple[str, ...], str]
    is_dry_run: bool

    @property
    def place(self) -> str:
        """Where its nodes are."""
        return "ec2" if self.local is None else f"{os.uname().nodename}:{self.local.resolve()}"

    @property
    def place_words(self) -> list[str]:
        """The options that say where its nodes are, who watches and trusts them, and how long each may take."""
        words = [] if self.local is None else ["--local", str(self.local)]
        words += [] if self.proxy_address is None else ["--proxy", self.proxy_address]
        words += [word for path in self.trust for word in ("--trust", str(path))]
        words += ["--allow-unsigned"] if self.is_unsigned_allowed else []
        words += ["--driver", self.driver_name] if self.driver_name else []
        words += ["--pool", str(self.pool)] if self.pool else []
        words += ["--ready-within", f"{self.ready_s_max:g}"] if self.ready_s_max != READY_S else []
        words += ["--bake", f"{self.bake_s:g}"] if self.bake_s != BAKE_S else []
        return words + machine_words(*self.machine)
