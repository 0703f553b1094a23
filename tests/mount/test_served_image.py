"""A mount whose image is served beside the blob, as the kernel reads it; fetched metadata in real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.disk.blob_cache import BlobCache
from synclib.disk.mounts import MNT_DETACH, MS_NODEV, MS_NOSUID, MS_RDONLY, mount, mount_erofs, unmount
from synclib.engine.attach import attach
from synclib.engine.host import no_progress
from synclib.engine.mount import opened, prepare
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Blob
from synclib.lazy.fuse_server import FuseServer, ServedFile, ServedFiles
from tests.e2e.boxlink_process import Machine
from tests.kit import Kit


@contextlib.contextmanager
def serving(kit: Kit, place: Path) -> Iterator[Path]:
    """The head, mounted by this process."""
    prepared = prepare(kit.dataset, Kit(place / "node", kit.store).host, kit.dataset.manifest_at(None))
    assert not prepared.image
    files_at, target = place / "files", place / "mount"
    for path in (files_at, target):
        path.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read=1048576"
    mount(b"boxlink", os.fsencode(files_at), b"fuse.boxlink", MS_RDONLY | MS_NOSUID | MS_NODEV, options.encode())
    errors: list[BoxlinkError] = []
    cache = BlobCache(Path(prepared.cache), prepared.address_end)
    with opened(prepared, kit.store) as (extents, image):
        assert image is not None
        blob = Blob(kit.store, prepared.root, extents, cache, SystemClock())
        served = [
            ServedFile(b"blob", prepared.blob_bytes, blob.read),
            ServedFile(b"image", image.image_bytes, image.read),
        ]
        server = threading.Thread(target=FuseServer(device, ServedFiles(served), 60, errors.append).serve, daemon=True)
        server.start()
        try:
            mount_erofs(os.fsencode(files_at / "image"), os.fsencode(files_at / "blob"), os.fsencode(target))
            try:
                yield target
            finally:
                unmount(os.fsencode(target), MNT_DETACH)
        finally:
            unmount(os.fsencode(files_at), MNT_DETACH)
            server.join(30)
            blob.close()
            os.close(device)
    assert not errors


def test_a_served_image_is_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.lazy.metadata.WHOLE_IMAGE_BYTES", 0)
    monkeypatch.setattr("synclib.lazy.base_image._WHOLE_OBJECT_BYTES", 0)
    kit = Kit(tmp_path / "publisher")
    for number in range(600):
        path = kit.directory / f"d{number % 7}/sub{number % 3}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"f{number}").write_bytes(b"%d " % number * (number * 7 % 3000))
    (kit.directory / "wide").mkdir()
    for number in range(3000):
        (kit.directory / f"wide/{number:05}").write_bytes(b"w" * (number % 2))
    kit.publish()
    attach(kit.dataset, kit.host, no_progress, entries_min=1)
    shutil.rmtree(kit.directory / "d3")
    (kit.directory / "d1/new").write_bytes(b"new")
    (kit.directory / "d1/link").symlink_to("new")
    (kit.directory / "wide/00007").write_bytes(b"changed")
    kit.publish()
    with serving(kit, tmp_path) as target:
        done = subprocess.run(["diff", "-r", kit.directory, target], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_fetched_metadata_in_a_real_mount(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    source, target = tmp_path / "source", tmp_path / "mount"
    target.mkdir()
    for number in range(4200):
        path = source / f"{number % 30}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number}").write_bytes(b"%d" % number)
    machine.run("init")
    machine.run("publish", "covers", source)
    assert [item["kind"] for item in machine.json("compact", "covers")["attachments"]] == ["image", "map", "wall"]
    (source / "5/5").write_bytes(b"changed")
    (source / "6/6").unlink()
    machine.run("publish", "covers", source)
    try:
        assert machine.json("mount", "covers", target)["metadata"] == "fetched"
        done = subprocess.run(["diff", "-r", source, target], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        machine.run("umount", target)
