"""Every key, marker and file name, built and parsed side by side.

Names come from people, from stores and from other machines, so parsing is strict: what does not build back to
itself is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from synclib.errors import Corrupt, Invalid

ACTIVE, DOWN, UP, ERROR = "synch.active", "synch.down", "synch.up", "synch.error"
MARKERS = (ACTIVE, DOWN, UP, ERROR)
STATE_DIRECTORY = ".boxlink"
FOLLOWED = ".channel"  # ends the name of a file below it: which channel of releases its `boxlink up` follows
LOG_DIRECTORY = "log"
LEVELS = ("diff1", "diff2", "diff3", "snap")
ATTACHMENTS = ("image", "map", "wall")  # kinds

PATH_BYTES_MAX = 4096
NAME_BYTES_MAX = 255

_DATASET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_dataset(name: str) -> str:
    """``name`` if it may name a dataset: letters, digits, ``.``, ``_``, ``-``; at most 128; not ``log``."""
    if not _DATASET.fullmatch(name) or ".." in name or name.startswith("synch."):
        raise Invalid(
            f"{name!r} is no dataset name",
            hint="use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    if name == LOG_DIRECTORY:
        raise Invalid("'log' is no dataset name: data/log holds log files", hint="choose another name")
    return name


def check_node(name: str) -> str:
    """``name`` if it may name a node; the same rule as for datasets, but that "log" is allowed."""
    if not _DATASET.fullmatch(name) or ".." in name:
        raise Invalid(f"{name!r} is no node name", hint="use --node with letters, digits, '.', '_' and '-'")
    return name


def check_tag(name: str) -> str:
    """``name`` if it may name a tag: as a node, but not digits alone, which would be a seq."""
    if not _DATASET.fullmatch(name) or ".." in name or name.isdigit():
        raise Invalid(f"{name!r} is no tag name", hint="use letters, digits, '.', '_' and '-', not digits alone")
    return name


def dataset_root(name: str) -> str:
    """The key prefix of a dataset, without a slash at its end."""
    return f"data/{check_dataset(name)}"


def release_root(name: str) -> str:
    """The key prefix of a release: a dataset whose root is there."""
    return f"release/{check_dataset(name)}"


def head_key(root: str) -> str:
    return f"{root}/head"


def manifest_prefix(root: str, seq: int | None = None) -> str:
    """The listing prefix of all manifests of a dataset, or of those of one seq."""
    return f"{root}/manifest/" + ("" if seq is None else f"{seq:020}-")


def manifest_key(root: str, seq: int, digest: str) -> str:
    return f"{manifest_prefix(root, seq)}{digest}"


def parse_manifest_key(root: str, key: str) -> tuple[int, str]:
    """(seq, digest of the manifest object) of a manifest's key."""
    seq, dash, digest = key.removeprefix(manifest_prefix(root)).partition("-")
    if not (dash and len(seq) == 20 and seq.isascii() and seq.isdigit() and _DIGEST.fullmatch(digest)):
        raise Corrupt("no manifest has such a name", key=key)
    return int(seq), digest


def run_prefix(root: str) -> str:
    return f"{root}/run/"


def run_key(root: str, level: str, seq_first: int, seq_last: int, ulid: str) -> str:
    return f"{root}/run/{level}/{seq_first:020}-{seq_last:020}-{ulid}"


@dataclass(frozen=True, slots=True)
class RunName:
    level: str
    seq_first: int
    seq_last: int
    ulid: str


def parse_run_key(root: str, key: str) -> RunName:
    level, _, rest = key.removeprefix(f"{root}/run/").partition("/")
    parts = rest.split("-")
    if (
        level not in LEVELS
        or len(parts) != 3
        or not all(len(part) == 20 and part.isascii() and part.isdigit() for part in parts[:2])
        or not _ULID.fullmatch(parts[2])
    ):
        raise Corrupt("no run has such a name", key=key)
    return RunName(level, int(parts[0]), int(parts[1]), parts[2])


def pack_prefix(root: str) -> str:
    return f"{root}/pack/"


def pack_key(root: str, ulid: str) -> str:
    return f"{root}/pack/{ulid}"


def attachment_prefix(root: str, kind: str) -> str:
    """The listing prefix of a dataset's attachments of one kind."""
    if kind not in ATTACHMENTS:
        raise Corrupt(f"no attachment is a {kind!r}")
    return f"{root}/{kind}/"


def attachment_key(root: str, kind: str, ulid: str) -> str:
    return attachment_prefix(root, kind) + ulid


def intent_prefix(root: str) -> str:
    return f"{root}/intent/"


def intent_key(root: str, ulid: str) -> str:
    return f"{root}/intent/{ulid}"


def pin_prefix(root: str) -> str:
    return f"{root}/pin/"


def pin_key(root: str, ulid: str) -> str:
    return f"{root}/pin/{ulid}"


def parse_ulid_key(prefix: str, key: str) -> str:
    """The ULID that an object below ``prefix`` (a pack, an intent, a pin) is named by."""
    text = key.removeprefix(prefix)
    if not _ULID.fullmatch(text):
        raise Corrupt("no object has such a name", key=key)
    return text


def tag_prefix(root: str) -> str:
    return f"{root}/tag/"


def tag_key(root: str, name: str) -> str:
    return f"{root}/tag/{check_tag(name)}"


def trace_prefix(root: str) -> str:
    return f"{root}/trace/"


def trace_key(root: str, seq: int, ulid: str) -> str:
    return f"{trace_prefix(root)}{seq:020}-{ulid}"


def parse_trace_key(root: str, key: str) -> tuple[int, str]:
    """(seq, ULID) of a trace's key."""
    seq, dash, ulid = key.removeprefix(trace_prefix(root)).partition("-")
    if not (dash and len(seq) == 20 and seq.isascii() and seq.isdigit() and _ULID.fullmatch(ulid)):
        raise Corrupt("no trace has such a name", key=key)
    return int(seq), ulid


def log_prefix(node: str = "", file: str = "") -> str:
    """The listing prefix of all log segments, of one node's, or of one file's."""
    if not node:
        return "log/"
    return f"log/{check_node(node)}/" + (f"{check_node(file)}/" if file else "")


def log_key(node: str, file: str, first_byte: int) -> str:
    return f"{log_prefix(node, file)}{first_byte:020}"


def parse_log_key(key: str) -> tuple[str, str, int]:
    """(node, file, first byte) of a log segment's key."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "log" or len(parts[3]) != 20 or not (parts[3].isascii() and parts[3].isdigit()):
        raise Corrupt("no log segment has such a name", key=key)
    return check_node(parts[1]), check_node(parts[2]), int(parts[3])


def proxy_key(ip: str, port: int) -> str:
    """``proxy/<ip>.p<port>``; an IPv6 address is written without brackets."""
    return f"proxy/{ip}.p{port}"


def node_key(node: str) -> str:
    return f"node/{check_node(node)}"


def swap_key(node: str) -> str:
    """What a node's volume is to be swapped for (core/swap.py)."""
    return f"swap/{check_node(node)}"


def channel_prefix() -> str:
    return "channel/"


def node_prefix() -> str:
    return "node/"


def upgrade_prefix() -> str:
    return "upgrade/"


def channel_key(name: str) -> str:
    return f"channel/{check_node(name)}"


def upgrade_key(ulid: str) -> str:
    return f"upgrade/{ulid}"


def statement_prefix(name: str) -> str:
    """The listing prefix of what was signed of a release's seqs."""
    return f"{release_root(name)}/signed/"


def statement_key(name: str, seq: int) -> str:
    return f"{statement_prefix(name)}{seq:020}"


def current_key(name: str) -> str:
    """The statement of the seq of a release that new nodes take; moved by compare-and-swap."""
    return f"{release_root(name)}/current"


def boot_key(name: str, seq: int) -> str:
    """The tar.gz of a release's seq that a first boot unpacks."""
    return f"{release_root(name)}/boot-{seq}.tar.gz"


def bootstrap_key(name: str) -> str:
    """The program of a release that first boots run."""
    return f"{release_root(name)}/bootstrap.pyz"


def check_component(name: bytes) -> bytes:
    """``name`` if it may name one entry in a directory (I9): no separator, no NUL, not ``.`` or ``..``."""
    if not name or len(name) > NAME_BYTES_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise Corrupt(f"an entry's name would leave its directory: {name!r}")
    return name


def check_directory(path: bytes) -> bytes:
    """``path`` if it is a clean relative directory: empty for the root, else components joined by ``/``."""
    if len(path) > PATH_BYTES_MAX:
        raise Corrupt(f"a path of {len(path)} bytes is too long")
    if path:
        for component in path.split(b"/"):
            check_component(component)
    return path


def is_reserved(directory: bytes, name: bytes) -> bool:
    """Whether a path is ours (markers and state in the root, and all below them) and so never part of a dataset."""
    first = directory.partition(b"/")[0] or name
    return first == STATE_DIRECTORY.encode() or first.startswith(b"synch.")


def sort_key(directory: bytes, name: bytes) -> bytes:
    """The one order of entries: by (directory, name), such that a depth-first walk emits it.

    NUL cannot stand in a name, so it separates; a directory's own entries come before those of its children.
    """
    return directory.replace(b"/", b"\0") + b"\0\0" + name


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """(directory, name) of a path inside a dataset."""
    directory, _, name = path.rpartition(b"/")
    return directory, name
