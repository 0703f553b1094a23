"""Tools that let a machine read files that are elsewhere, each as one who uses it would start it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from synclib.disk.mounts import MNT_DETACH, unmount
from synclib.volume import first_touch
from tools.bench.mounts.data import BOXLINK, Site, call

_START_S = 120.0
_IMAGE_SPARE = 1.15  # of an ext4 image, for what is not content


class Contender(ABC):
    """``start`` and ``stop`` are of one machine, whose caches are empty at first and are kept by ``kill``."""

    name = ""
    program = ""  # that must be installed

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def mount(self) -> Path:
        return self.home / "mount"

    @property
    def files(self) -> Path:
        """Where the dataset's files are, once it is mounted."""
        return self.mount

    def version(self) -> str:
        return call([self.program, "version"], self.site.near).decode().split("\n")[0]

    @abstractmethod
    def put(self) -> None:
        """Once: bring the data to where it is read from."""

    def start(self, home: Path) -> None:
        """On a machine that has nothing; returns when it can be read."""
        self.home = home
        self.mount.mkdir(parents=True)
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """On a machine that has what was read before; returns when it can be read."""

    def spawn(self, *words: str) -> None:
        """A program that stays while the mount is there; waits for that."""
        self.process = subprocess.Popen(
            words, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_S
        while not os.path.ismount(self.mount):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: {' '.join(words)} mounted nothing")
            time.sleep(0.002)

    @property
    def environment(self) -> dict[str, str]:
        return self.site.environment(self.site.far, self.home)

    def kill(self) -> None:
        """kill -9; what is left of the mount is taken away as its user would do it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self._take_away()

    def stop(self) -> None:
        self._take_away()
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
            self.process.wait()
            self.process = None

    def _take_away(self) -> None:
        with contextlib.suppress(OSError):
            unmount(os.fsencode(self.mount), MNT_DETACH)


class Boxlink(Contender):
    """``traced``: an earlier machine has recorded what its start-up read; ``words``: how it is mounted."""

    program = BOXLINK

    def __init__(self, site: Site, dataset: str, *words: str, name: str = "boxlink") -> None:
        super().__init__(site)
        self.name, self.dataset, self.words = name, dataset, words

    def version(self) -> str:
        return call([BOXLINK, "--version"], self.site.near).decode().strip()

    def put(self) -> None:
        if not (self.site.server.directory / "boxlink.json").exists():
            call([BOXLINK, "init", "-q"], self.site.near)
        call([BOXLINK, "publish", self.dataset, str(self.site.source), "-q"], self.site.near)

    def begin(self) -> None:
        call([BOXLINK, "mount", self.dataset, str(self.mount), *self.words], self.environment)

    def record(self, home: Path, paths: list[str]) -> None:
        """Let a machine read these, and its trace be published."""
        self.start(home)
        for path in paths:
            (self.files / path).read_bytes()
        call([BOXLINK, "trace", "stop", str(self.mount)], self.environment)
        while b'"traces": []' in call([BOXLINK, "trace", "show", self.dataset, "--json"], self.environment):
            time.sleep(0.1)
        self.stop()

    def kill(self) -> None:
        """The keeper and its worker."""
        (row,) = json.loads(call([BOXLINK, "status", "--json"], self.environment))["mounts"]
        if worker := row.get("worker"):  # none where every byte is here
            for pid in (_parent(worker), worker):
                os.kill(pid, signal.SIGKILL)
        call([BOXLINK, "umount", "--force", str(self.mount)], self.environment)

    def stop(self) -> None:
        call([BOXLINK, "umount", str(self.mount)], self.environment)


class Rclone(Contender):
    name, program = "rclone mount", "rclone"

    def put(self) -> None:
        target = f"far:{self.site.server.bucket}/plain"
        call(["rclone", "copy", "--transfers", "16", str(self.site.source), target], self.site.near)

    def begin(self) -> None:
        self.spawn(
            *("rclone", "mount", f"far:{self.site.server.bucket}/plain", str(self.mount), "--read-only"),
            *("--vfs-cache-mode", "full", "--cache-dir", str(self.home / "cache"), "--dir-cache-time", "100h"),
        )


class S3fs(Contender):
    """It reads what rclone has put, which must come first."""

    name, program = "s3fs", "s3fs"

    def put(self) -> None:
        """It is there."""

    def version(self) -> str:
        return call(["s3fs", "--version"], self.site.near).decode().split("\n")[0]

    def begin(self) -> None:
        cache = self.home / "cache"
        cache.mkdir(exist_ok=True)
        options = f"url={self.site.far},use_path_request_style,use_cache={cache},ro"
        self.spawn("s3fs", f"{self.site.server.bucket}:/plain", str(self.mount), "-f", "-o", options)

    @property
    def environment(self) -> dict[str, str]:
        found = super().environment
        return {
            **found,
            "AWSACCESSKEYID": found["AWS_ACCESS_KEY_ID"],
            "AWSSECRETACCESSKEY": found["AWS_SECRET_ACCESS_KEY"],
        }


class Restic(Contender):
    name, program = "restic mount", "restic"

    def put(self) -> None:
        call(["restic", "init", "-q"], self.site.near)
        call(["restic", "backup", "-q", "."], self.site.near, cwd=self.site.source)

    def begin(self) -> None:
        self.spawn("restic", "mount", "-q", str(self.mount))

    @property
    def files(self) -> Path:
        return self.mount / "snapshots" / "latest"


class BlockDevice(Contender):
    """A volume made of a snapshot: an ext4 image of which each block of 512 KiB waits when it is read first."""

    name, program = "lazy block device", "mkfs.ext4"
    _device, _slow = "", Path()

    def version(self) -> str:
        return f"{self.site.first_touch_s * 1000:.0f} ms for each 512 KiB read first"

    @property
    def _image(self) -> Path:
        return self.site.place / "volume.ext4"

    def put(self) -> None:
        size = sum(path.stat().st_size + 4096 for path in self.site.source.rglob("*") if path.is_file())
        with open(self._image, "wb") as file:
            file.truncate(int(size * _IMAGE_SPARE) + (64 << 20))
        call(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(self.site.source), str(self._image)], dict(os.environ))

    def begin(self) -> None:
        self._slow = self.home / "slow"
        self._slow.mkdir(exist_ok=True)
        image = first_touch.start(self._image, self._slow, self.site.first_touch_s)
        self._device = (
            call(["losetup", "--find", "--show", "--read-only", str(image)], dict(os.environ)).decode().strip()
        )
        call(["mount", "-o", "ro", self._device, str(self.mount)], dict(os.environ))

    def kill(self) -> None:
        """The machine goes, and with it what its volume had brought: the next one begins anew."""
        self.stop()

    def stop(self) -> None:
        call(["umount", str(self.mount)], dict(os.environ))
        call(["losetup", "-d", self._device], dict(os.environ))
        unmount(os.fsencode(self._slow), MNT_DETACH)


def installed(site: Site) -> list[Contender]:
    """Ours first, then those that are on this machine."""
    rivals: list[Contender] = [kind(site) for kind in (Rclone, S3fs, Restic, BlockDevice) if shutil.which(kind.program)]
    return [Boxlink(site, "bench"), Boxlink(site, "untraced", name="boxlink, no trace"), *rivals]


def _parent(pid: int) -> int:
    """proc(5), ``/proc/pid/stat``: the fourth field, after a name in brackets."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
