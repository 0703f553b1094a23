"""Calls to AWS: a deadline for each, tried again where that cannot do harm, failures as kinds.

boto3's own retries are turned off (``client_settings``): they know neither our clock nor which call may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from synclib.clock import Clock, Entropy
from synclib.errors import Unavailable
from synclib.volume.aws_errors import translate

CONNECT_S = 5.0
SILENCE_S = 20.0
DEADLINE_S = 120.0  # after this no further try begins
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 5.0
POOL_CONNECTIONS = 64

T = TypeVar("T")


def client_settings() -> Mapping[str, object]:
    """Arguments of botocore's Config."""
    return {
        "connect_timeout": CONNECT_S,
        "read_timeout": SILENCE_S,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": POOL_CONNECTIONS,
        "tcp_keepalive": True,
    }


class Calls:
    """``repeated`` is for calls that may be made twice: that ask, that carry a token, or that say what shall be."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self.clock = clock
        self.entropy = entropy

    def once(self, what: str, call: Callable[[], T]) -> T:
        """One try."""
        try:
            return call()
        except (BotoCoreError, ClientError) as error:
            raise translate(error, what) from error

    def repeated(self, what: str, call: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
        """Until it is answered, with full jitter between the tries; kinds that ``call`` raises itself count too."""
        deadline = self.clock.monotonic() + deadline_s
        failures = 0
        while True:
            try:
                return self.once(what, call)
            except Unavailable as error:
                failures += 1
                pause = self.entropy.uniform() * min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**failures)
                if self.clock.monotonic() + pause > deadline:
                    raise Unavailable(error.message, hint=error.hint or "try again later") from error
                self.clock.sleep(pause)
