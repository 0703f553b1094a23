"""Cached 12 KB tiles through the proxy and through nginx's cache, in turns: requests per second of server CPU.

    python -m tools.bench.proxy [--rounds 3] [--seconds 5]

Needs nginx and wrk (Debian: ``apt-get install nginx-light wrk``) and two cores: the server runs on one, wrk on the
other. What is compared is CPU time of the server's processes (schedstat), since a machine's other work changes how
many requests a second it answers, but hardly what one request costs. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import glob
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BODY_BYTES = 12_288
URLS = 64
CONNECTIONS = 64
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML) Chrome/142.0.0.0 Safari/537.36",
    "Accept": "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7",
    "Referer": "http://covers.example/wall",
    "Sec-Fetch-Dest": "image",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Ch-Ua-Platform": '"Linux"',
    "Sec-Ch-Ua-Mobile": "?0",
}

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile {sendfile}; tcp_nopush {nopush}; keepalive_requests 1000000000; {more}
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=z:16m max_size=512m inactive=1h;
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache z; proxy_cache_valid 200 1h; }} }}
}}
"""


@dataclass(frozen=True)
class Server:
    name: str
    start: Callable[[str, int, int], list[str]]  # (folder, own port, origin's port) to the command


def _nginx(*, sendfile: str, nopush: str, more: str) -> Callable[[str, int, int], list[str]]:
    def start(folder: str, port: int, origin: int) -> list[str]:
        text = _NGINX.format(folder=folder, port=port, origin=origin, sendfile=sendfile, nopush=nopush, more=more)
        Path(folder, "nginx.conf").write_text(text)
        return ["nginx", "-p", folder, "-c", f"{folder}/nginx.conf"]

    return start


def _ours(_folder: str, port: int, origin: int) -> list[str]:
    return [sys.executable, "-m", "tools.bench.proxy", "--serve", str(port), str(origin)]


SERVERS = (
    Server("nginx proxy_cache, as Debian sets it up", _nginx(sendfile="on", nopush="on", more="")),
    Server(
        "nginx proxy_cache, tuned (open_file_cache, no sendfile, cache on tmpfs)",
        _nginx(sendfile="off", nopush="off", more="open_file_cache max=10000 inactive=1h; open_file_cache_valid 1h;"),
    ),
    Server("boxlink proxy", _ours),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, type=int, metavar=("PORT", "ORIGIN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    missing = [program for program in ("nginx", "wrk") if not _which(program)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; on Debian: apt-get install nginx-light wrk")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the server, one for wrk")
    print(json.dumps(measure(options.rounds, options.seconds), indent=1))


def measure(rounds: int, seconds: int) -> dict[str, object]:
    """All servers in turns, each load; medians and ranges."""
    figures: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder, running_origin() as origin:
        os.chmod(folder, 0o755)  # nginx's worker is another user where this runs as root
        loads = {"one URL, 3 fields": [], "64 URLs, a browser's fields": ["-s", _script(folder)]}
        for _ in range(rounds):
            for server in SERVERS:
                for load, arguments in loads.items():
                    own = tempfile.mkdtemp(dir=folder)
                    os.chmod(own, 0o777)
                    run = _one_run(server, origin, seconds, arguments, own)
                    figures.setdefault((load, server.name), []).append(run)
    return {"machine": _machine(), "rounds": rounds, "seconds": seconds, "loads": _summary(figures)}


def _summary(figures: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, object]:
    loads: dict[str, dict[str, object]] = {}
    for (load, name), runs in figures.items():
        costs = [run["per_cpu_s"] for run in runs]
        ratios = {}
        for other in SERVERS[:2]:
            # Round by round: the machine's own speed changes between rounds, by more than what is measured.
            theirs = [run["per_cpu_s"] for run in figures[load, other.name]]
            ratios[other.name] = _range(cost / their for cost, their in zip(costs, theirs, strict=True))
        loads.setdefault(load, {})[name] = {
            "requests_per_cpu_s": _range(costs, 0),
            "ratio_to": ratios,
            "requests_per_s": round(statistics.median(run["per_s"] for run in runs)),
            "p99_ms": round(statistics.median(run["p99_ms"] for run in runs), 2),
        }
    return dict(loads)


def _range(values: Iterable[float], digits: int = 2) -> list[float]:
    """Least, median, most."""
    ordered = sorted(values)
    return [round(value, digits) for value in (ordered[0], statistics.median(ordered), ordered[-1])]


def _one_run(server: Server, origin: int, seconds: int, arguments: list[str], folder: str) -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    port = _free_port()
    process = subprocess.Popen(
        ["taskset", "-c", str(cores[0]), *server.start(folder, port, origin)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(port)
        _wrk(url, 1, arguments, cores[1])
        before = _cpu_seconds(process.pid)
        output = _wrk(url, seconds, arguments, cores[1])
        used = _cpu_seconds(process.pid) - before
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{server.name} failed under load:\n{output}")
    count = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    duration = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    assert duration is not None
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[duration[2]]
    return {"per_cpu_s": count / used, "per_s": count / seconds, "p99_ms": float(duration[1]) * scale}


def _wrk(url: str, seconds: int, arguments: list[str], core: int) -> str:
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "--latency",
        *arguments,
        f"{url}/tiles/0.jpg",
    ]
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    ).stdout


def _cpu_seconds(group: int) -> float:
    """CPU time of all threads of a process group so far (first figure of schedstat, ns)."""
    total = 0
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(Path(stat).read_text().rpartition(")")[2].split()[2]) != group:
                continue
            for schedstat in glob.glob(f"{os.path.dirname(stat)}/task/*/schedstat"):
                total += int(Path(schedstat).read_text().split()[0])
    return total / 1e9


def _script(folder: str) -> str:
    fields = "\n".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in BROWSER_HEADERS.items()
    )
    path = Path(folder, "browser.lua")
    path.write_text(
        f"{fields}\nlocal n, all = 0, {{}}\n"
        f'function init() for i = 0, {URLS - 1} do all[i] = wrk.format("GET", "/tiles/" .. i .. ".jpg") end end\n'
        f"function request() n = (n + 1) % {URLS}; return all[n] end\n"
    )
    return str(path)


@contextlib.contextmanager
def running_origin() -> Iterator[int]:
    """A backend in a thread of this process; it answers each URL once, then the caches do."""
    body = os.urandom(BODY_BYTES)
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {BODY_BYTES}\r\n"
        'ETag: "0123456789abcdef"\r\nDate: {}\r\n\r\n'
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
                writer.write(head.replace("{}", date).encode() + body)
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def serve(port: int, origin: int) -> None:
    """The proxy as ``boxlink proxy`` runs it, over a store that holds one registration."""
    import structlog

    from proxy.core.networks import parse_networks
    from proxy.server import ProxyServer, ProxySettings
    from synclib.clock import SystemClock, SystemEntropy
    from synclib.core.names import proxy_key
    from synclib.store.memory import MemoryStore
    from tools.cli.proxy import freeze_collector, loop_factory

    store = MemoryStore()
    registration = {"handles": ["/tiles/*"], "cache": "365d", "lease_s": 3600}
    store.put(proxy_key("127.0.0.1", origin), json.dumps(registration).encode())
    settings = ProxySettings(listen=("127.0.0.1", port), networks=parse_networks(["127.0.0.0/8"], store.url))

    async def run() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        server = ProxyServer(settings, store, SystemClock(), SystemEntropy(), log)
        await server.start()
        freeze_collector()
        await stopped.wait()
        await server.stop()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


def _machine() -> dict[str, object]:
    versions = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    for name, command in {"nginx": ["nginx", "-v"], "wrk": ["wrk", "-v"]}.items():
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        versions[name] = (done.stdout + done.stderr).split("\n")[0].split(" Copyright")[0]
    return dict(versions)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    import socket

    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
