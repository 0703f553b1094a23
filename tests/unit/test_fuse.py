"""The answer to INIT, as the kernel's own struct has it (include/uapi/linux/fuse.h, struct fuse_init_out)."""

from __future__ import annotations

import errno
import struct

import pytest

from synclib.core import fuse

_INIT_EXT, _RESEND, _TIMEOUT = 1 << 30, 1 << 7, 1 << 10
# Offsets in fuse_init_out, behind the header of 16 bytes.
_FLAGS, _FLAGS2, _REQUEST_TIMEOUT = 16 + 12, 16 + 32, 16 + 40
_ALL = (1 << 32) - 1


def ask(minor: int = 45, flags: int = _ALL, flags2: int = _ALL, timeout_s: int = 120, major: int = 7) -> bytes:
    request = bytes(fuse.HEADER_BYTES) + struct.pack("<5I", major, minor, 1 << 17, flags, flags2)
    return fuse.init_answer(request, 77, timeout_s)


def test_the_answer_has_the_kernels_length() -> None:
    answer = ask()
    length, number, unique = struct.unpack_from("<IiQ", answer)
    assert (length, number, unique) == (len(answer), 0, 77) == (16 + 64, 0, 77)
    assert struct.unpack_from("<II", answer, 16) == (7, 45)


def test_the_kernel_is_told_its_timeout_where_it_has_one() -> None:
    answer = ask()
    assert struct.unpack_from("<H", answer, _REQUEST_TIMEOUT) == (120,)
    assert struct.unpack_from("<I", answer, _FLAGS2)[0] == _RESEND | _TIMEOUT
    assert struct.unpack_from("<I", answer, _FLAGS)[0] & _INIT_EXT


@pytest.mark.parametrize(
    ("flags", "flags2"), [(_ALL, _ALL & ~_TIMEOUT), (_ALL & ~_INIT_EXT, _ALL)], ids=["too old", "no second word"]
)
def test_no_timeout_where_the_kernel_has_none(flags: int, flags2: int) -> None:
    answer = ask(flags=flags, flags2=flags2)
    assert struct.unpack_from("<H", answer, _REQUEST_TIMEOUT) == (0,)
    assert not struct.unpack_from("<I", answer, _FLAGS2)[0] & _TIMEOUT
    assert struct.unpack_from("<I", answer, _FLAGS)[0] & ~flags == 0


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 45), (8, 0)])
def test_a_kernel_that_speaks_otherwise_is_refused(major: int, minor: int) -> None:
    assert struct.unpack("<IiQ", ask(minor, major=major)) == (16, -errno.EPROTO, 77)


def test_an_older_kernel_is_answered_in_its_own_words() -> None:
    assert struct.unpack_from("<II", ask(31), 16) == (7, 31)
    assert struct.unpack_from("<II", ask(99), 16) == (7, 45)


def test_what_is_asked_again_is_known_by_its_number() -> None:
    assert fuse.Request(fuse.READ, 1 << 63 | 8, 2).is_resent
    assert not fuse.Request(fuse.READ, 8, 2).is_resent
