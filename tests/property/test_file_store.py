"""The file store against the model, on keys chosen to collide as files and directories."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from synclib.clock import ManualClock, SeededEntropy
from synclib.errors import BoxlinkError
from synclib.store.base import Store
from synclib.store.file import FileStore
from synclib.store.memory import MemoryStore

KEYS = st.lists(st.sampled_from(["a", "b", "a%", "a%25", "%tmp", "a-", "a0", "é"]), min_size=1, max_size=3).map(
    "/".join
)
PREFIXES = st.one_of(KEYS, KEYS.map(lambda key: key + "/"), st.just(""))
BODIES = st.binary(max_size=3)


class FileStoreIsTheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="boxlink-property-"))
        self.file: Store = FileStore(str(self.root), ManualClock(), SeededEntropy(1))
        self.model: Store = MemoryStore()
        self.etags: dict[str, list[tuple[str, str]]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def both(self, call: Callable[[Store], object]) -> list[object]:
        """The results, or the kinds of error, of one call to each; etags are told apart by store."""
        results: list[object] = []
        for store in (self.file, self.model):
            try:
                results.append(call(store))
            except BoxlinkError as error:
                results.append(error.kind)
        return results

    def put(self, key: str, body: bytes, **condition: object) -> None:
        if_match = condition.pop("if_match", (None, None))
        matches = dict(zip((id(self.file), id(self.model)), if_match, strict=True))  # type: ignore[arg-type]
        found = self.both(
            lambda store: ("etag", store.put(key, body, if_match=matches[id(store)], **condition))  # type: ignore[arg-type]
        )
        if all(isinstance(result, tuple) for result in found):
            self.etags.setdefault(key, []).append((found[0][1], found[1][1]))  # type: ignore[index]
        else:
            assert found[0] == found[1]

    @rule(key=KEYS, body=BODIES)
    def overwrite(self, key: str, body: bytes) -> None:
        self.put(key, body)

    @rule(key=KEYS, body=BODIES)
    def create(self, key: str, body: bytes) -> None:
        self.put(key, body, if_absent=True)

    @rule(key=KEYS, body=BODIES, data=st.data())
    def swap(self, key: str, body: bytes, data: st.DataObject) -> None:
        known = self.etags.get(key, [("no", "no")])
        self.put(key, body, if_match=data.draw(st.sampled_from(known)))

    @rule(key=KEYS, data=st.data())
    def delete(self, key: str, data: st.DataObject) -> None:
        etags = data.draw(st.sampled_from([(None, None), *self.etags.get(key, [])]))
        matches = dict(zip((id(self.file), id(self.model)), etags, strict=True))
        found = self.both(lambda store: store.delete(key, if_match=matches[id(store)]))
        assert found[0] == found[1]

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        found = self.both(lambda store: store.get(key, size_max=3).data)  # type: ignore[union-attr]
        assert found[0] == found[1]

    @rule(prefix=PREFIXES, after=PREFIXES)
    def listing(self, prefix: str, after: str) -> None:
        found = self.both(lambda store: [(info.key, info.size) for info in store.list(prefix, after=after)])
        assert found[0] == found[1]

    @invariant()
    def holds_the_same(self) -> None:
        found = self.both(lambda store: [(info.key, info.size) for info in store.list("")])
        assert found[0] == found[1]


TestFileStoreIsTheModel = FileStoreIsTheModel.TestCase
