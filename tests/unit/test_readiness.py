"""What a node lacks to be ready, as the store, it itself and the proxy say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from synclib.core.registration import Registration
from synclib.core.rollout import NodeSpec
from synclib.store.memory import MemoryStore
from tools.fleet.proxy_admin import ProxyAdmin
from tools.fleet.readiness import Readiness

SPEC = NodeSpec(node="n1", role="render", release="r@2", pins={"covers": 7})
WELL = Registration(handles=["/"], node="n1", release="r@2", dataset="covers", seq=7, probe="/tile")


class Servers:
    """A node and a proxy's admin address in one: what each path answers."""

    def __init__(self) -> None:
        paths = self.paths = {"/healthz": (200, b"ok"), "/tile": (200, b"jpeg")}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = paths[self.path]
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.backend: dict[str, object] = {
            "address": self.address, "state": "active", "ejected": False, "proven": True
        }  # fmt: skip
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def why(self, registration: Registration | None, *, is_there: bool = True, draining: bool = False) -> str:
        """Why the node is not ready; empty where it is."""
        store = MemoryStore()
        if registration is not None:
            store.put(f"proxy/127.0.0.1.p{self.server.server_port}", registration.model_dump_json().encode())
        self.paths["/backends"] = 200, json.dumps([self.backend]).encode()
        readiness = Readiness(store, ProxyAdmin(self.address))
        (view,) = readiness.look([SPEC], lambda _: is_there, ["n1"] if draining else []).values()
        assert view.is_ready == (is_there and not view.why)
        return view.why if is_there else "gone"


@pytest.fixture
def servers() -> Iterator[Servers]:
    found = Servers()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


@pytest.mark.parametrize(
    ("registration", "why"),
    [
        (WELL, ""),
        (WELL.model_copy(update={"probe": ""}), ""),
        (None, "it has not registered: its data or its program is not ready"),
        (WELL.model_copy(update={"node": "n2"}), "it has not registered: its data or its program is not ready"),
        (WELL.model_copy(update={"state": "draining"}), "it drains"),
        (WELL.model_copy(update={"seq": 6}), "it serves seq 6, not 7"),
        (WELL.model_copy(update={"settled": False}), "it does not hold yet what the others serve"),
        (WELL.model_copy(update={"release": ""}), "it runs release none, not r@2"),
    ],
)
def test_what_it_registered(servers: Servers, registration: Registration | None, why: str) -> None:
    assert servers.why(registration) == why
    assert servers.why(registration, draining=True) == "it drains"
    assert servers.why(registration, is_there=False) == "gone"


@pytest.mark.parametrize("path", ["/healthz", "/tile"])
def test_what_it_answers_itself(servers: Servers, path: str) -> None:
    servers.paths[path] = 503, b"not yet"
    assert f"{path} does not answer: HTTP Error 503" in servers.why(WELL)


@pytest.mark.parametrize(
    "word", [{"proven": False}, {"ejected": True}, {"state": "draining"}, {"address": "1.2.3.4:5"}]
)
def test_what_the_proxy_says_of_it(servers: Servers, word: dict[str, object]) -> None:
    servers.backend.update(word)
    assert servers.why(WELL) == "the proxy does not send to it yet"
