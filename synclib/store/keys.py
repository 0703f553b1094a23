"""Which keys a store accepts."""

from __future__ import annotations

from synclib.errors import Invalid

KEY_BYTES_MAX = 1024  # S3's limit


def check_key(key: str) -> str:
    """``key``, if :func:`is_key`; else Invalid."""
    if not is_key(key):
        raise Invalid(f"{key[:200]!r} is no key")
    return key


def is_key(key: str) -> bool:
    """Whether every store can hold it: relative, no empty, ``.`` or ``..`` component, no control character, no
    surrogate; at most KEY_BYTES_MAX bytes.
    """
    return not (
        any(component in ("", ".", "..") for component in key.split("/"))
        or any(ord(character) < 32 or ord(character) == 127 or "\ud800" <= character <= "\udfff" for character in key)
        or len(key.encode()) > KEY_BYTES_MAX
    )
