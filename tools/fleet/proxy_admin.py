"""What a proxy's admin address tells of its backends and its answers."""

from __future__ import annotations

import http.client
import json
import math
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from synclib.core.rollout import Traffic
from synclib.errors import Unavailable

_DEADLINE_S = 5.0
_ANSWER_BYTES_MAX = 16 << 20


class ProxyAdmin:
    """``address``: HOST:PORT, as `boxlink proxy --admin` has it."""

    def __init__(self, address: str) -> None:
        self._address = address

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
        return fetch(f"http://{self._address}{path}")


def fetch(url: str) -> bytes:
    """The body of a 200. Unavailable for anything else."""
    try:
        with urllib.request.urlopen(url, timeout=_DEADLINE_S) as answer:
            body: bytes = answer.read(_ANSWER_BYTES_MAX)
            return body
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"{url} does not answer: {error}", hint="is it up?") from error
