"""The policies of docs/iam/, and a store that holds its caller to one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synclib.core.snapshot_tags import store_tag
from synclib.errors import Invalid, Missing
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store
from tests.aws.iam import Access, load_policy
from tests.aws.least import Noted

DIRECTORY = Path(__file__).parents[2] / "docs" / "iam"
ROLES = ("publisher", "node", "proxy", "operator")
BUCKET, PREFIX = "covers-bucket", "fleet"


def policy_document(role: str, store: str = f"s3://{BUCKET}/{PREFIX}") -> dict[str, Any]:
    """A policy with its places filled in. ``store``: whose instances it is about, where that is no bucket."""
    text = (DIRECTORY / f"{role}.json").read_text().replace("s3://BUCKET/PREFIX", store_tag(store))
    document: dict[str, Any] = json.loads(text.replace("BUCKET", BUCKET).replace("PREFIX", PREFIX))
    return document


class PolicyStore:
    """A store as S3 would let a role see it (service authorization reference, S3; conditional deletes read too).

    That a key is not there is told only to who may list it (API reference, GetObject, "Permissions"): ``s3:prefix`` is
    then the key.
    """

    def __init__(self, store: Store, role: str, noted: Noted | None = None) -> None:
        """``noted``: is told what was needed for what was allowed."""
        self.url = store.url
        self._role, self._noted = role, noted
        self._store = store
        self._policy = load_policy(policy_document(role))

    def may_read(self, key: str) -> bool:
        return self._policy.allows(Access("s3:GetObject", f"arn:aws:s3:::{BUCKET}/{PREFIX}/{key}"))

    def _check(self, action: str, key: str) -> None:
        self._check_access(Access(action, f"arn:aws:s3:::{BUCKET}/{PREFIX}/{key}"), key)

    def _check_access(self, access: Access, key: str) -> None:
        if not self._policy.allows(access):
            raise Invalid(f"S3 answered 403 AccessDenied to {access.action}", key=key)
        if self._noted is not None:
            self._noted.add(self._role, [access])

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        self._check("s3:GetObject", key)
        try:
            yield
        except Missing:
            self._check_list(key)
            raise

    def _check_list(self, prefix: str) -> None:
        context = {"s3:prefix": f"{PREFIX}/{prefix}"}
        self._check_access(Access("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", context), prefix)

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        with self._reading(key):
            return self._store.get(key, size_max=size_max, if_none_match=if_none_match)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        with self._reading(key):
            return self._store.get_ranges(key, ranges)

    def get_suffix(self, key: str, length: int) -> Fetched:
        with self._reading(key):
            return self._store.get_suffix(key, length)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        self._check("s3:PutObject", key)
        return self._store.put(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._check("s3:DeleteObject", key)
        if if_match is not None:
            self._check("s3:GetObject", key)
        self._store.delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self._check_list(prefix)
        return self._store.list(prefix, after=after)
