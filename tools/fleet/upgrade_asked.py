"""What ``boxlink upgrade`` was asked, as the words of its command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from synclib.core.rollout import Rollout
from tools.cli_context import shown_in_line
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
    region: str = ""  # of EC2, where its nodes are there

    @property
    def place(self) -> str:
        """Where its nodes are."""
        if self.local is None:
            return shown_in_line(f"ec2 {self.region}".rstrip())
        return shown_in_line(f"{os.uname().nodename}:{self.local.resolve()}")

    @property
    def trust_words(self) -> list[str]:
        """Who is trusted, wherever the command is said next."""
        words = [word for path in self.trust for word in ("--trust", str(path))]
        return [*words, "--allow-unsigned"] if self.is_unsigned_allowed else words

    def words_for(self, rollout: Rollout) -> list[str]:
        """The options with which a rollout goes on: where its nodes are, who watches and trusts them, how long each may
        take. As they were said here, or when it was begun."""
        proxy = self.proxy_address or rollout.proxy
        local = rollout.place.partition(":")[2] if self.local is None else str(self.local.absolute())
        words = ["--local", local] if local else []
        words += ["--proxy", proxy] if proxy else []
        words += self.trust_words
        words += ["--driver", self.driver_name] if self.driver_name else []
        words += ["--pool", str(self.pool)] if self.pool else []
        words += ["--ready-within", f"{self.ready_s_max:g}"] if self.ready_s_max != READY_S else []
        words += ["--bake", f"{self.bake_s:g}"] if self.bake_s != BAKE_S else []
        return words + machine_words(*self.machine)
