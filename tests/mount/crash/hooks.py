"""Steps of a fault and of an upgrade at which workers of a test's mounts can be killed, or held, from outside.

A worker imports the file that :func:`install` writes (site, "sitecustomize"); it also shortens the worker's deadlines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mount.test_upgrade import wait

# In this order, for a chunk that is not here.
STEPS = ("taken", "asked", "fetched", "verified", "written", "recorded", "answered")
DEADLINE_S = 3.0  # instead of a minute

_HOOKS = """
import os, signal, sys, time
from pathlib import Path
if "tools.mount_worker" in sys.orig_argv:
    from synclib.core import fuse, hydration
    from synclib.disk.blob_cache import BlobCache
    from synclib.disk.cache_record import CacheRecord
    from synclib.engine import mount, startup
    from synclib.lazy import blob, fuse_server
    from synclib.store import retry, s3

    place = Path({place!r})
    # What is here before it is read is no fault.
    startup.likely = lambda top: []
    hydration.Streams.read = lambda self, start, stop: None
    blob.DEADLINE_S = fuse_server.DEADLINE_S = {deadline_s!r}
    retry.TRIES = 2
    s3.S3Store.__init__.__kwdefaults__["deadlines"] = s3.Deadlines(1.0, 1.0, 2.0)

    def at(step):
        try:
            told, *victims = (place / "kill").read_text().split()
        except (FileNotFoundError, ValueError):
            told, victims = "", []
        if told == step:
            try:
                os.rename(place / "kill", place / f"killed {{step}}")
            except FileNotFoundError:
                return
            keeper = os.getppid()
            if "keeper" in victims and b"mount_keeper" in Path(f"/proc/{{keeper}}/cmdline").read_bytes():
                os.kill(keeper, signal.SIGKILL)
            if "worker" in victims:
                os.kill(os.getpid(), signal.SIGKILL)
        if (place / f"hold {{step}}").exists():
            (place / f"at {{step}}").write_text(str(os.getpid()))
            while (place / f"hold {{step}}").exists():
                time.sleep(0.005)

    def after(owner, name, step):
        function = getattr(owner, name)
        def hooked(*words, **more):
            found = function(*words, **more)
            at(step)
            return found
        setattr(owner, name, hooked)

    def before(owner, name, step):
        function = getattr(owner, name)
        def hooked(*words, **more):
            at(step)
            return function(*words, **more)
        setattr(owner, name, hooked)

    before(retry.RetryStore, "get_ranges", "asked")
    after(retry.RetryStore, "get_ranges", "fetched")
    after(blob, "chunk_in", "verified")
    after(BlobCache, "_write", "written")
    after(CacheRecord, "set_states", "recorded")
    before(fuse_server.FuseServer, "__init__", "starting")
    before(fuse_server.FuseServer, "retire", "retiring")
    answer, send = fuse_server.FuseServer._answer, fuse_server.FuseServer._send
    def hooked_answer(self, request, *words):
        if request.opcode == fuse.READ:
            at("taken")
        return answer(self, request, *words)
    def hooked_send(self, answer):
        send(self, answer)
        if len(answer) == 2:  # of a READ
            at("answered")
    fuse_server.FuseServer._answer, fuse_server.FuseServer._send = hooked_answer, hooked_send
"""


class Hooks:
    """In ``place``, a new directory; ``environment``: of the command that mounts."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self._place = place
        place.mkdir()
        (place / "sitecustomize.py").write_text(_HOOKS.format(place=str(place), deadline_s=DEADLINE_S))
        environment["PYTHONPATH"] = f"{place}:{os.environ.get('PYTHONPATH', '')}"

    def kill(self, step: str, *victims: str) -> None:
        """``worker`` or ``keeper`` or both, once, when a worker comes to that step."""
        (self._place / f"killed {step}").unlink(missing_ok=True)
        (self._place / "kill new").write_text(" ".join((step, *victims)))
        os.rename(self._place / "kill new", self._place / "kill")

    def has_killed(self, step: str) -> bool:
        (self._place / "kill").unlink(missing_ok=True)
        return (self._place / f"killed {step}").exists()

    @contextmanager
    def held(self, step: str) -> Iterator[None]:
        """Workers that come to that step stay there."""
        (self._place / f"at {step}").unlink(missing_ok=True)
        (self._place / f"hold {step}").touch()
        try:
            yield
        finally:
            (self._place / f"hold {step}").unlink()

    def wait(self, step: str) -> None:
        """Until a worker is held there."""
        path = self._place / f"at {step}"
        wait(lambda: path.exists() and bool(path.read_text()))
