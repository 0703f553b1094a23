"""What the engine's daemons need of a logger."""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """An event and its fields."""

    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...
