"""The tools that are compared, each as its users run it: no password that costs time, caches of their own."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from tools.bench.command import Run, run
from tools.s3server import ACCESS_KEY, SECRET_KEY


class Tool(ABC):
    """``endpoint``: an S3 server, with a bucket ``bench`` in it; empty for a local repository."""

    name: str
    program: str = ""  # where it is called otherwise
    version_words: tuple[str, ...] = ("--version",)

    def __init__(self, command: str) -> None:
        self.command = command
        self.repository = Path()
        self.endpoint = ""
        self.prefix = ""
        self.environ: dict[str, str] = {}

    def version(self) -> str:
        done = subprocess.run([self.command, *self.version_words], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()[0]

    def prepare(self, repository: Path, endpoint: str = "", prefix: str = "") -> None:
        """A fresh, empty repository, with caches of its own."""
        self.repository, self.endpoint, self.prefix = repository, endpoint, prefix
        repository.mkdir()
        self.environ = {
            "XDG_CACHE_HOME": str(repository / "cache"),
            "XDG_STATE_HOME": str(repository / "state"),
            "XDG_CONFIG_HOME": str(repository / "config"),
            "HOME": str(repository),
        }
        if endpoint:
            self.environ |= {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
            }
        self.create()

    def forget(self) -> None:
        """Nothing is cached any more: another machine comes."""
        shutil.rmtree(self.repository / "cache", ignore_errors=True)

    @abstractmethod
    def create(self) -> None: ...

    @abstractmethod
    def publish(self, source: Path) -> Run: ...

    @abstractmethod
    def restore(self, source: Path, target: Path) -> Run: ...

    @abstractmethod
    def one_file(self, source: Path, path: str, target: Path) -> Run:
        """A file's bytes go to the file ``target``."""

    @abstractmethod
    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        """A folder goes to the directory ``target``."""

    def call(self, *words: str, cwd: Path | None = None, out: Path | None = None) -> Run:
        return run([self.command, *words], self.environ, cwd, out)


class Boxlink(Tool):
    name = "boxlink"

    def create(self) -> None:
        store = f"s3://bench/{self.prefix}" if self.endpoint else f"file://{self.repository}/store"
        self.environ["BOXLINK_STORE"] = store
        self.call("init", "-q")

    def publish(self, source: Path) -> Run:
        return self.call("publish", "data", str(source), "-q")

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", "data", str(target), "-q")

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("cat", "data", path, out=target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        return self.call("restore", "data", str(target), "--path", path, "-q")


class Restic(Tool):
    name = "restic"
    version_words = ("version",)

    def create(self) -> None:
        place = f"s3:{self.endpoint}/bench/{self.prefix}" if self.endpoint else str(self.repository / "store")
        self.environ |= {"RESTIC_REPOSITORY": place, "RESTIC_PASSWORD": "x"}
        self.call("init", "-q")

    def publish(self, source: Path) -> Run:
        return self.call("backup", "-q", ".", cwd=source)

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", "latest", "-q", "--target", str(target))

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("dump", "latest", f"/{path}", "-q", out=target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        return self.call("restore", "latest", "-q", "--include", f"/{path}", "--target", str(target))


class Borg(Tool):
    name = "borg"

    def create(self) -> None:
        self.environ |= {"BORG_REPO": str(self.repository / "store"), "BORG_BASE_DIR": str(self.repository)}
        self.count = 0
        self.call("init", "--encryption=none")

    def publish(self, source: Path) -> Run:
        self.count += 1
        return self.call("create", f"::{self.count}", ".", cwd=source)

    def restore(self, source: Path, target: Path) -> Run:
        target.mkdir()
        return self.call("extract", f"::{self.count}", cwd=target)

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("extract", "--stdout", f"::{self.count}", path, out=target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        target.mkdir()
        return self.call("extract", f"::{self.count}", path, cwd=target)


class Kopia(Tool):
    name = "kopia"

    def create(self) -> None:
        self.environ |= {"KOPIA_PASSWORD": "x", "KOPIA_CHECK_FOR_UPDATES": "false"}
        where = ["filesystem", "--path", str(self.repository / "store")]
        if self.endpoint:
            where = ["s3", "--bucket", "bench", "--prefix", f"{self.prefix}/", "--disable-tls", "--region", "us-east-1"]
            where += ["--endpoint", self.endpoint.removeprefix("http://"), "--access-key", ACCESS_KEY]
            where += ["--secret-access-key", SECRET_KEY]
        self.call("repository", "create", *where, "--block-hash=BLAKE3-256")

    def publish(self, source: Path) -> Run:
        return self.call("snapshot", "create", str(source), "--no-progress")

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", str(source), str(target), "--no-progress")

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("restore", str(source / path), str(target), "--no-progress")

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        return self.call("restore", str(source / path), str(target), "--no-progress")


class Rclone(Tool):
    """No versions and no digests: what copying costs."""

    name = "rclone"
    version_words = ("version",)

    def create(self) -> None:
        self.environ["RCLONE_CONFIG"] = str(self.repository / "rclone.conf")
        self.place = str(self.repository / "store")
        self.many: list[str] = []
        if self.endpoint:
            self.many = ["--transfers=32", "--checkers=32"]  # for a store some milliseconds away; its own default is 4
            self.place = f":s3,provider=Other,env_auth=true,endpoint='{self.endpoint}':bench/{self.prefix}"

    def publish(self, source: Path) -> Run:
        return self.call("sync", "-q", *self.many, str(source), self.place)

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("sync", "-q", *self.many, self.place, str(target))

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("cat", f"{self.place}/{path}", out=target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        return self.call("sync", "-q", *self.many, f"{self.place}/{path}", str(target))


class S5cmd(Tool):
    """On S3 only: one object a file."""

    name = "s5cmd"
    version_words = ("version",)

    def create(self) -> None:
        self.environ["S3_ENDPOINT_URL"] = self.endpoint
        self.place = f"s3://bench/{self.prefix}"

    def publish(self, source: Path) -> Run:
        return self.call("--log", "error", "sync", f"{source}/", f"{self.place}/")

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("--log", "error", "cp", f"{self.place}/*", f"{target}/")

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.call("--log", "error", "cat", f"{self.place}/{path}", out=target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        return self.call("--log", "error", "cp", f"{self.place}/{path}/*", f"{target}/")


class Archive(Tool):
    """tar piped through s5cmd to one object: no versions, no digests, and all of it for anything of it."""

    name = "tar+s5cmd"
    program = "s5cmd"
    version_words = ("version",)

    def create(self) -> None:
        self.environ["S3_ENDPOINT_URL"] = self.endpoint
        self.place = f"s3://bench/{self.prefix}.tar"

    def publish(self, source: Path) -> Run:
        return self.pipe(f"tar cf - -C {shlex.quote(str(source))} . | {self.command} pipe {self.place}")

    def restore(self, source: Path, target: Path) -> Run:
        target.mkdir()
        return self.pipe(f"{self.command} cat {self.place} | tar xf - -C {shlex.quote(str(target))}")

    def one_file(self, source: Path, path: str, target: Path) -> Run:
        return self.pipe(f"{self.command} cat {self.place} | tar xOf - {shlex.quote(f'./{path}')}", target)

    def one_folder(self, source: Path, path: str, target: Path) -> Run:
        target.mkdir()
        return self.pipe(f"{self.command} cat {self.place} | tar xf - -C {target} {shlex.quote(f'./{path}')}")

    def pipe(self, line: str, out: Path | None = None) -> Run:
        return run(["bash", "-o", "pipefail", "-c", line], self.environ, None, out)


_LOCAL = (Restic, Borg, Kopia, Rclone)
_S3 = (Restic, Kopia, Rclone, S5cmd, Archive)


def installed(*, is_s3: bool) -> list[Tool]:
    """boxlink, and those rivals that are on the PATH."""
    tools: list[Tool] = [Boxlink(str(Path(sys.executable).parent / "boxlink"))]
    for kind in _S3 if is_s3 else _LOCAL:
        found = shutil.which(kind.program or kind.name)
        if found is None:
            print(f"{kind.name}: not installed, left out", file=sys.stderr)
        else:
            tools.append(kind(found))
    return tools
