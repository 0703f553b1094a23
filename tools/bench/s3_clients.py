"""Client CPU a request of boto3 and obstore against a real S3 server, in one run (docs/decisions/0003-obstore.md).

``python -m tools.bench.s3_clients``. What is counted is this process alone: the server is a process of its own.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version

from tools import s3server

SMALL, LARGE, RANGE = 20_000, 32 << 20, 64 << 10
_ROUNDS = {"GET 20 KB": 500, "8 ranges of 64 KiB": 100, "PUT 20 KB": 500, "PUT 32 MiB": 8, "GET 32 MiB": 8}


def measure(rounds: int, call: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) milliseconds a call, after one call to warm up."""
    call()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(rounds):
        call()
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu / rounds * 1e3, (ended - started) / rounds * 1e3


def boto3_calls(server: s3server.S3Server, bodies: dict[str, bytes]) -> dict[str, Callable[[], object]]:
    import boto3

    client = boto3.Session().client("s3", endpoint_url=server.endpoint)

    def ranged() -> None:
        for index in range(8):
            start = index * RANGE * 4
            answer = client.get_object(Bucket=server.bucket, Key="large", Range=f"bytes={start}-{start + RANGE - 1}")
            answer["Body"].read()

    def get(key: str) -> object:
        return client.get_object(Bucket=server.bucket, Key=key)["Body"].read()

    return {
        "GET 20 KB": lambda: get("small"),
        "8 ranges of 64 KiB": ranged,
        "PUT 20 KB": lambda: client.put_object(Bucket=server.bucket, Key="b-small", Body=bodies["small"]),
        "PUT 32 MiB": lambda: client.put_object(Bucket=server.bucket, Key="b-large", Body=bodies["large"]),
        "GET 32 MiB": lambda: get("large"),
    }


def obstore_calls(
    server: s3server.S3Server, bodies: dict[str, bytes], *, unsigned: bool
) -> dict[str, Callable[[], object]]:
    import boto3
    import obstore
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    store = S3Store(
        server.bucket,
        config={"endpoint": server.endpoint, "region": s3server.REGION, "unsigned_payload": unsigned},
        client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
        credential_provider=Boto3CredentialProvider(boto3.Session()),
    )
    starts = [index * RANGE * 4 for index in range(8)]
    ends = [start + RANGE for start in starts]

    def ranged() -> list[bytes]:
        return [bytes(part) for part in obstore.get_ranges(store, "large", starts=starts, ends=ends, coalesce=0)]

    def put(key: str, body: bytes) -> object:
        return obstore.put(store, key, body, use_multipart=False)

    return {
        "GET 20 KB": lambda: bytes(obstore.get(store, "small").bytes()),
        "8 ranges of 64 KiB": ranged,
        "PUT 20 KB": lambda: put("o-small", bodies["small"]),
        "PUT 32 MiB": lambda: put("o-large", bodies["large"]),
        "GET 32 MiB": lambda: bytes(obstore.get(store, "large").bytes()),
    }


def main() -> None:
    print(f"Python {platform.python_version()}, boto3 {version('boto3')}, obstore {version('obstore')}")
    bodies = {"small": os.urandom(SMALL), "large": os.urandom(LARGE)}
    with s3server.running() as server:
        os.environ.update(server.environment())
        contestants = {
            "boto3": boto3_calls(server, bodies),
            "obstore": obstore_calls(server, bodies, unsigned=False),
            "obstore, unsigned": obstore_calls(server, bodies, unsigned=True),
        }
        contestants["boto3"]["PUT 20 KB"]()
        import boto3

        client = boto3.Session().client("s3", endpoint_url=server.endpoint)
        for name, body in bodies.items():
            client.put_object(Bucket=server.bucket, Key=name, Body=body)
        print("| what | client | CPU ms | wall ms |\n|---|---|---|---|")
        for what, rounds in _ROUNDS.items():
            for name, calls in contestants.items():
                cpu, wall = measure(rounds, calls[what])
                print(f"| {what} | {name} | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
