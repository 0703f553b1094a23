"""A volume that is slow where it was never read, as EBS volumes of snapshots are: an image behind our own FUSE server,
with a wait for each block of 512 KiB that is touched for the first time. A loop device stands on it.

    python -m synclib.volume.first_touch IMAGE DIRECTORY SECONDS TOLD

A process of the local driver's: it mounts DIRECTORY, in which the file ``image`` is, writes a line to the descriptor
TOLD, ``ok`` or what failed, and ends when it is unmounted. It can be read alone: our server writes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from synclib.clock import Clock, SystemClock
from synclib.disk.fuse_mount import mount_fuse
from synclib.errors import BoxlinkError, Unavailable
from synclib.lazy.fuse_server import FuseServer, ServedFile, ServedFiles
from synclib.volume.base import BLOCK_BYTES

NAME = "image"
_KERNEL_TIMEOUT_S = 120


class SlowImage:
    """Reads of an image; safe between threads."""

    def __init__(self, path: Path, first_touch_s: float, clock: Clock) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size
        self._first_touch_s, self._clock = first_touch_s, clock
        self._touched = bytearray(-(-self.size // BLOCK_BYTES))

    def read(self, position: int, length: int) -> bytes:
        """Blocks that come together are waited for one after the other."""
        for index in range(position // BLOCK_BYTES, -(-(position + length) // BLOCK_BYTES)):
            if not self._touched[index]:
                self._clock.sleep(self._first_touch_s)
                self._touched[index] = 1
        return os.pread(self._file, length, position)


def start(image: Path, directory: Path, first_touch_s: float) -> Path:
    """Serve an image slowly; the file that is slow. Unavailable where it cannot be mounted."""
    ready, told = os.pipe2(os.O_CLOEXEC)
    words = [str(image), str(directory), str(first_touch_s), str(told)]
    with open(ready, "rb") as answers:
        try:
            subprocess.Popen(
                [sys.executable, "-m", "synclib.volume.first_touch", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
                pass_fds=(told,),
            )
        finally:
            os.close(told)
        said = answers.readline().decode(errors="replace").strip()
    if said != "ok":
        raise Unavailable(f"a slow volume cannot be served: {said or 'its process ended'}", path=str(directory))
    return directory / NAME


def main() -> int:
    image, directory, seconds, told = sys.argv[1:]
    try:
        slow = SlowImage(Path(image), float(seconds), SystemClock())
        device = mount_fuse(os.fsencode(directory), allow_other=False)
    except OSError as error:
        os.write(int(told), f"{error}\n".encode())
        return 1
    server = FuseServer(device, ServedFiles([ServedFile(NAME.encode(), slow.size, slow.read)]), _KERNEL_TIMEOUT_S, _say)
    os.write(int(told), b"ok\n")
    os.close(int(told))
    server.serve()
    return 0


def _say(error: BoxlinkError) -> None:
    print(f"{error.kind}: {error.message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
