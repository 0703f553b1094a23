"""Images that were changed, as the kernel reads them: what an image made anew of the same tree shows, they show."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from synclib.core.entry import HARDLINK, Entry, Kind
from synclib.core.erofs import BLOCK_BYTES, ImageBuilder
from synclib.core.image_patch import ImagePatch, NotPatchableError
from tests.mount.test_erofs_image import Tree

NAMES = [b"a", b"b", b"!", b"long" * 60, b"\xff\xfe", *(b"n%03d" % number for number in range(300))]


class Changed(Tree):
    """A tree whose image is that of another one, changed."""

    def __init__(self, before: Tree) -> None:
        super().__init__()
        self.before = before
        self.address_end = before.address_end

    def changes(self) -> list[Entry]:
        old, new = ({entry.path: entry for entry in tree.entries} for tree in (self.before, self))
        gone = [Entry(entry.directory, entry.name, Kind.TOMBSTONE) for path, entry in old.items() if path not in new]
        changed = [entry for path, entry in new.items() if old.get(path) != entry]
        return sorted([*gone, *changed], key=lambda entry: entry.key)

    def image(self) -> tuple[bytes, ImageBuilder]:
        image, builder = self.before.image()
        patch = ImagePatch(lambda position, length: image[position : position + length], len(image))
        patch.apply(self.changes())
        patch.seal(len(self.entries) + 1, self.address_end, b"j" * 16)
        changed = bytearray(image.ljust(patch.image_bytes, b"\0"))
        for number, block in patch.blocks.items():
            changed[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] = block
        return bytes(changed), builder

    def check(self, target: bytes) -> None:
        super().check(target)
        for directory in [b"", *(entry.path for entry in self.entries if entry.kind == Kind.DIRECTORY)]:
            children = [entry for entry in self.entries if entry.directory == directory]
            status = os.stat(os.path.join(target, directory))
            assert status.st_mtime_ns == max((entry.mtime_ns for entry in children), default=0)
            assert status.st_nlink == 2 + sum(entry.kind == Kind.DIRECTORY for entry in children)


def some_path(choose: random.Random, directories: list[bytes]) -> bytes:
    directory = choose.choice(directories)
    return (directory + b"/" if directory else b"") + choose.choice(NAMES)


def add_some(tree: Tree, choose: random.Random, count: int) -> None:
    """Put files, links and directories at paths that are free, below directories that are there."""
    for _ in range(count):
        taken = {entry.path for entry in tree.entries}
        path = some_path(choose, [b"", *(entry.path for entry in tree.entries if entry.kind == Kind.DIRECTORY)])
        if path in taken or path.count(b"/") > 3:
            continue
        kind = choose.choice([Kind.FILE, Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK])
        if kind == Kind.FILE:
            tree.file(path, choose.choice([0, 1, 5000]), choose.randrange(0o1000))
        elif kind == Kind.DIRECTORY:
            tree.add(path, kind, 0o755)
        else:
            target = b"t" * choose.choice([1, 100, 4095])
            tree.add(path, kind, 0o777, choose.choice([-5, 10**18, 2 * 10**18]), target=target)


def remove_some(tree: Tree, choose: random.Random) -> None:
    for _ in range(choose.randrange(6)):
        if tree.entries:
            path = choose.choice(tree.entries).path
            tree.entries = [
                entry for entry in tree.entries if entry.path != path and not entry.path.startswith(path + b"/")
            ]


@pytest.mark.parametrize("seed", range(40))
def test_any_change_of_any_tree(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    before = Tree()
    add_some(before, choose, choose.choice([0, 3, 40, 300]))
    after = Changed(before)
    after.entries = list(before.entries)
    remove_some(after, choose)
    for entry in [entry for entry in after.entries if entry.kind == Kind.FILE][: choose.randrange(5)]:
        after.entries.remove(entry)
        after.file(entry.path, choose.choice([0, 9, 9000]))
    add_some(after, choose, choose.choice([0, 2, 30]))
    with after.mounted(tmp_path) as target:
        after.check(target)


def test_what_was_something_else_before(tmp_path: Path) -> None:
    before = Tree()
    before.add(b"dir", Kind.DIRECTORY, 0o755)
    before.add(b"dir/below", Kind.DIRECTORY, 0o755)
    before.file(b"dir/below/file", 5)
    before.file(b"file", 5)
    before.add(b"link", Kind.SYMLINK, 0o777, target=b"file")
    after = Changed(before)
    after.file(b"dir", 6)
    after.add(b"file", Kind.DIRECTORY, 0o700)
    after.file(b"file/in it", 7)
    after.add(b"link", Kind.SYMLINK, 0o777, target=b"another, longer")
    with after.mounted(tmp_path) as target:
        after.check(target)


def test_a_file_in_a_large_directory_changes_few_blocks() -> None:
    before = Tree()
    before.add(b"many", Kind.DIRECTORY, 0o755)
    for number in range(20_000):
        before.add(b"many/%06d" % number, Kind.FILE)
    image, _ = before.image()
    patch = ImagePatch(lambda position, length: image[position : position + length], len(image))
    patch.apply([Entry(b"many", b"000777", Kind.FILE, 0o600, 1)])
    patch.seal(20_002, 1, b"j" * 16)
    # The superblock, the file's inode, and perhaps the directory's.
    assert len(patch.blocks) <= 3
    assert patch.block_count * BLOCK_BYTES == len(image)


def test_hard_links_are_not_changed_here() -> None:
    tree = Tree()
    for name in (b"one", b"two"):
        tree.add(name, Kind.FILE, extra=((HARDLINK, b"g" * 16),))
    image, _ = tree.image()
    for change in (Entry(b"", b"one", Kind.TOMBSTONE), tree.entries[0], Entry(b"", b"two", Kind.FILE, 0o600)):
        with pytest.raises(NotPatchableError):
            ImagePatch(lambda position, length: image[position : position + length], len(image)).apply([change])
