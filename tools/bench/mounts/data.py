"""What the mounts are of: small files in folders, and one large file, put once to wherever each tool reads from."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.bench.data import Shape
from tools.s3server import S3Server

BOXLINK = str(Path(sys.executable).parent / "boxlink")
LARGE = "large.bin"
_MB = 1 << 20


@dataclass(frozen=True)
class Site:
    """A store that is near for those who publish, and far for those who mount: ``far`` is its endpoint for these."""

    server: S3Server
    far: str
    source: Path
    place: Path
    first_touch_s: float  # what a block of 512 KiB of a volume costs that was never read

    def environment(self, endpoint: str, home: Path) -> dict[str, str]:
        """Of a machine whose caches are below ``home``."""
        return {
            **os.environ,
            **self.server.environment(),
            "AWS_ENDPOINT_URL": endpoint,
            "BOXLINK_STORE": self.server.url,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "RESTIC_PASSWORD": "x",
            "RESTIC_REPOSITORY": f"s3:{endpoint}/{self.server.bucket}/restic",
            "RCLONE_CONFIG_FAR_TYPE": "s3",
            "RCLONE_CONFIG_FAR_PROVIDER": "Other",
            "RCLONE_CONFIG_FAR_ENV_AUTH": "true",
            "RCLONE_CONFIG_FAR_ENDPOINT": endpoint,
        }

    @property
    def near(self) -> dict[str, str]:
        return self.environment(self.server.endpoint, self.place / "publisher")

    def small_files(self) -> list[str]:
        """Their paths, in order."""
        return sorted(str(path.relative_to(self.source)) for path in self.source.rglob("*.jpg"))


def make_source(top: Path, count: int, large_mb: int) -> None:
    Shape("small", count).make(top)
    generator = random.Random("large")
    with open(top / LARGE, "wb") as file:
        file.writelines(generator.randbytes(_MB) for _ in range(large_mb))


def call(words: list[str], environment: dict[str, str], **options: object) -> bytes:
    """What a command prints. SystemExit when it fails."""
    done = subprocess.run(words, env=environment, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(words)}: {(done.stdout + done.stderr).decode(errors='replace')[-2000:]}")
    return bytes(done.stdout)
