"""What is stored compressed: what a probe says will help, and nothing else is tried on."""

from __future__ import annotations

import random

import pytest

from synclib.core import pack
from synclib.core.entry import ChunkRef, Codec
from synclib.core.pack import decode_chunk, encode_chunk

SIZES = [20_000, 1 << 20]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what zstd was given."""
    sizes: list[int] = []
    real = pack.zstd.compress

    def compress(plain: bytes) -> bytes:
        sizes.append(len(plain))
        return real(plain)

    monkeypatch.setattr(pack.zstd, "compress", compress)
    return sizes


@pytest.mark.parametrize("size", SIZES)
def test_what_is_incompressible_is_left_raw_after_a_look_at_a_little(tried: list[int], size: int) -> None:
    plain = random.Random(1).randbytes(size)
    stored, codec = encode_chunk(plain)
    assert (codec, bytes(stored)) == (Codec.RAW, plain)
    assert sum(tried) <= max(size // 15, 1024)


@pytest.mark.parametrize("size", [100, *SIZES])
def test_text_is_compressed(tried: list[int], size: int) -> None:
    words = random.Random(2)
    plain = b" ".join(b"%d" % words.randrange(50) for _ in range(size // 2))[:size]
    stored, codec = encode_chunk(plain)
    assert codec == Codec.ZSTD
    assert len(stored) < len(plain) * 0.8
    assert tried[-1] == size
    chunk = ChunkRef(pack.blake3(plain).digest(), bytes(16), 0, len(stored), size, codec)
    assert bytes(decode_chunk(chunk, stored)) == plain


def test_what_zstd_does_not_help_is_raw_also_where_the_probe_was_wrong() -> None:
    """Two samples of zeros, all else noise."""
    size = 100_000
    plain = bytearray(random.Random(3).randbytes(size))
    for at in (size // 4, size * 3 // 4):
        plain[at : at + 512] = bytes(512)
    stored, codec = encode_chunk(bytes(plain))
    assert len(stored) <= size
    assert codec in (Codec.RAW, Codec.ZSTD)
