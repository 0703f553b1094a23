"""A synthetic dataset is read as any other: what its index says of its computed packs is true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy, ulid_text
from synclib.core.names import pack_key
from synclib.errors import Corrupt
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.store.file import FileStore
from tools.bench.synthetic import FOLDER_FILES, ROOT, Content, SyntheticStore, make, open_synthetic, path_of

FILES = 4 * FOLDER_FILES


@pytest.mark.parametrize("file_bytes", [18_000, 180_000])
def test_files_are_what_they_must_be(tmp_path: Path, file_bytes: int) -> None:
    store = FileStore(str(tmp_path / "store"), SystemClock(), SystemEntropy())
    store.create()
    content = Content(file_bytes)
    manifest = make(store, content, FILES, tmp_path)
    assert (manifest.file_count, manifest.plain_bytes) == (FILES, FILES * file_bytes)
    view = open_view(Dataset(open_synthetic(str(tmp_path / "store"), file_bytes), ROOT))
    try:
        packs = set()
        for folder, number in ((0, 0), (0, 1249), (1, 0), (2, 777), (3, 185), (3, 186), (3, 187), (3, 1249)):
            path = path_of(folder, number)
            right = content.file(folder, number)
            file = view.open(path)
            assert len(right) == file_bytes
            assert file.pread(0, file_bytes) == right
            assert file.pread(5, 100) == right[5:105]
            packs.add(content.place_of(folder, number)[0])
        assert len(packs) >= 4
        assert len(list(view.listdir(b"d0000002"))) == FOLDER_FILES
        assert view.stat(path_of(2, 5)).address == 1 + (2 * FOLDER_FILES + 5) * -(-file_bytes // 4096)
    finally:
        view.close()


def test_what_is_no_chunk_is_not_there_and_other_bytes_are_noticed(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"), SystemClock(), SystemEntropy())
    store.create()
    content = Content(18_000)
    make(store, content, FILES, tmp_path)
    computed = SyntheticStore(store, content)
    key = pack_key(ROOT, ulid_text((1).to_bytes(16, "big")))
    end = 32 + FOLDER_FILES * 18_000
    assert len(computed.get_ranges(key, [(end - 50_000, end)])[0]) == 50_000
    for first, stop in ((0, 10), (end - 10, end + 10), (50, 50)):
        with pytest.raises(Corrupt):
            computed.get_ranges(key, [(first, stop)])
    # A store with another key to its noise: every hash says so.
    wrong = Content(18_000)
    wrong._noise = os.urandom(len(wrong._noise))
    view = open_view(Dataset(SyntheticStore(store, wrong), ROOT))
    try:
        with pytest.raises(Corrupt):
            view.open(path_of(1, 1)).pread(0, 10)
    finally:
        view.close()
