"""What a proxy's admin address tells of its backends and its answers."""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from synclib.core.rollout import Traffic
from synclib.errors import Unavailable

_DEADLINE_S = 5.0
_ANSWER_BYTES_MAX = 16 << 20
_PIECE_BYTES = 64 << 10


class ProxyAdmin:
    """``address``: HOST:PORT, as `boxlink proxy --admin` has it. ``deadline_s``: for a whole answer."""

    def __init__(self, address: str, deadline_s: float = _DEADLINE_S, bytes_max: int = _ANSWER_BYTES_MAX) -> None:
        self._address, self._deadline_s, self._bytes_max = address, deadline_s, bytes_max

    def takes(self) -> set[str]:
        """Addresses (IP:PORT) of the backends that it sends requests to as to any other: it has asked a new one for its
        probe, and got that. Unavailable where it does not answer."""
        try:
            found = json.loads(self._get("/backends"))
            return {
                str(one["address"])
                for one in found
                if one["state"] == "active" and not one["ejected"] and one.get("proven", True)
            }
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(
                f"{self._address} is no proxy's admin address",
                hint="HOST:PORT that the proxy was started with: its --admin",
            ) from error

    def traffic(self) -> Traffic:
        """What it answered since its start. Unavailable where it does not answer."""
        answers = {"boxlink_proxy_responses_total": {}, "boxlink_proxy_backend_p99_seconds": {}}  # type: ignore[var-annotated]
        for family in text_string_to_metric_families(self._get("/metrics").decode()):
            for sample in family.samples:
                if sample.name in answers and sample.labels.get("state", "active") == "active":
                    answers[sample.name][tuple(sample.labels.values())] = sample.value
        by_status = answers["boxlink_proxy_responses_total"]
        failures = sum(value for (status,), value in by_status.items() if status.startswith("5"))
        slowest = max(answers["boxlink_proxy_backend_p99_seconds"].values(), default=0.0)
        requests = sum(by_status.values())
        if not all(map(math.isfinite, (requests, failures, slowest))):
            raise Unavailable(f"{self._address} tells figures that are none")
        return Traffic(int(requests), int(failures), slowest * 1000)

    def _get(self, path: str) -> bytes:
        return fetch(f"http://{self._address}{path}", self._deadline_s, self._bytes_max)


def fetch(url: str, deadline_s: float = _DEADLINE_S, bytes_max: int = _ANSWER_BYTES_MAX) -> bytes:
    """The body of a 200. Unavailable for anything else, also for one that is longer, or takes longer."""
    stop = time.monotonic() + deadline_s
    try:
        with urllib.request.urlopen(url, timeout=deadline_s) as answer:
            body = b""
            # Piece by piece: a timeout of the socket is for each, however many come.
            while piece := answer.read1(_PIECE_BYTES):
                body += piece
                if len(body) > bytes_max or time.monotonic() > stop:
                    raise ValueError("its answer is too long, or too slow")
            return body
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"{url} does not answer: {error}", hint="is it up?") from error
