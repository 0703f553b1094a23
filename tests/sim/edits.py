"""What users do to a directory between two publishes: few names, so that publishers meet."""

from __future__ import annotations

import zlib
from random import Random

from synclib.core.entry import Kind
from tests.sim.trees import NEW_DIRECTORY, Thing, Tree, parents

_NAMES = [b"a", b"b", b"d", b"d/x", b"d/y", b"d/e", b"d/e/z", b"d!", b"m", b"m/07", b"\xff"]
# The outside is beside each actor's directories: a node that follows a link leaves its own (I9).
_TARGETS = [b"a", b"../../../outside", b"../../../outside/x"]
_SECOND = 1_000_000_000


def edited(random: Random, tree: Tree, now_ns: int) -> Tree:
    """A tree after some changes of a user's, none of them twice at the same nanosecond; never an empty one, which no
    node would publish."""
    result = dict(tree)
    for _ in range(random.randrange(1, 5)):
        if random.random() < 0.1:
            _put_many(random, result, now_ns)
            continue
        path = random.choice(_NAMES)
        if random.random() < 0.3:
            _remove(result, path)
        elif path in result and random.random() < 0.3:
            result[path] = _relabelled(random, result[path], now_ns)
        else:
            _put(result, path, _new_thing(random, now_ns))
    if not result:
        _put(result, b"b", _new_thing(random, now_ns))
    return result


def _remove(tree: Tree, path: bytes) -> None:
    for other in list(tree):
        if other == path or path in parents(other):
            del tree[other]


def _put(tree: Tree, path: bytes, thing: Thing) -> None:
    for parent in parents(path):
        if parent not in tree or tree[parent].kind != Kind.DIRECTORY:
            _remove(tree, parent)
            tree[parent] = NEW_DIRECTORY
    if path in tree and tree[path].kind == Kind.DIRECTORY and thing.kind == Kind.DIRECTORY:
        return
    _remove(tree, path)
    tree[path] = thing


def _put_many(random: Random, tree: Tree, now_ns: int) -> None:
    """So many, that some of the blocks that name them lie clear of what changes next."""
    for number in range(random.randrange(8, 20)):
        size = random.choice([1, 1, 300])
        _put(tree, b"m/%02d" % number, Thing(Kind.FILE, random.randbytes(size), 0o644, _time(random, now_ns)))


def _new_thing(random: Random, now_ns: int) -> Thing:
    chance = random.random()
    if chance < 0.15:
        return Thing(Kind.DIRECTORY, mode=random.choice([0o755, 0o700]))
    if chance < 0.3:
        return Thing(Kind.SYMLINK, random.choice(_TARGETS), 0o777, _time(random, now_ns))
    data = random.choice([b"", b"1", b"2", b"22" * 40, random.randbytes(random.randrange(1, 900)), b"text " * 300])
    # Two users sometimes put the very same file.
    time_ns = zlib.crc32(data) * _SECOND if random.random() < 0.3 else _time(random, now_ns)
    return Thing(Kind.FILE, data, random.choice([0o644, 0o644, 0o600]), time_ns)


def _relabelled(random: Random, thing: Thing, now_ns: int) -> Thing:
    """Another mode or time, the same content."""
    if thing.kind == Kind.SYMLINK or (thing.kind == Kind.FILE and random.random() < 0.5):
        return thing._replace(mtime_ns=_time(random, now_ns))
    return thing._replace(mode=random.choice([0o755, 0o700, 0o711]))


def _time(random: Random, now_ns: int) -> int:
    """Lately, mostly; sometimes this very moment, sometimes ahead of the clock."""
    return now_ns + random.choice([-_SECOND * 3600, -_SECOND, 0, 7200 * _SECOND]) - random.randrange(1_000_000)
