"""How a key is written as a path below a file store's root.

An ordinary key is its own path: ``data/covers/head`` is the file ``data/covers/head``. Three things differ:

* ``%`` in a key is written ``%25``, so any other name with ``%`` in it can be no key's and is ours to use;
* a file system cannot hold an object ``a`` beside objects ``a/…``: when the directory ``a`` is in its way, the object
  is the file ``a%`` (its *aside* name);
* ``%tmp`` at the root holds files being written and the lock. No listing shows it.
"""

from __future__ import annotations

from synclib.errors import Invalid
from synclib.store.keys import check_key

RESERVED = b"%tmp"
LOCK_FILE = b"lock"
COMPONENT_BYTES_MAX = 254  # 255 is what file systems hold; one is kept for the aside name


def split_key(key: str) -> tuple[list[bytes], bytes]:
    """(directory components, file name) of a key, as they are written; Invalid when a file system cannot hold it."""
    *parents, name = (_encode(component) for component in check_key(key).split("/"))
    for component in (*parents, name):
        if len(component) > COMPONENT_BYTES_MAX:
            raise Invalid(f"a component of the key is longer than {COMPONENT_BYTES_MAX} bytes", key=key)
    return parents, name


def aside(name: bytes) -> bytes:
    """The name of an object whose own name is taken by a directory."""
    return name + b"%"


def is_aside(name: bytes) -> bool:
    return name.endswith(b"%")


def decode(name: bytes) -> str | None:
    """The key component that is written ``name``; None when no key's is."""
    try:
        component = name.replace(b"%25", b"%").decode()
        return component if _encode(check_key(component)) == name else None
    except (UnicodeDecodeError, Invalid):
        return None


def _encode(component: str) -> bytes:
    return component.encode().replace(b"%", b"%25")
