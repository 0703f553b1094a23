"""Lists of blocks as EBS direct gives them, page by page, and the few pages whose tokens are kept for reads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from synclib.errors import Unavailable, Unsupported
from synclib.volume.aws_calls import Calls
from synclib.volume.aws_errors import reason_of
from synclib.volume.base import BLOCK_BYTES

_PAGE_ROWS_MAX = 10_000
_EMPTY_PAGES_MAX = 1000
_KEPT_PAGES = 16
_INDEX_MAX = 1 << 27  # blocks of 64 TiB
_RESTARTS_MAX = 8


@dataclass(frozen=True)
class Page:
    """All blocks from ``first`` to ``last`` (both included) that there are, by index, each with its token."""

    first: int
    last: int
    size_gib: int
    tokens: Mapping[int, str]


class Listing:
    """One list: ``ask`` is the client's method, ``rows`` and ``token`` the names of what it answers."""

    def __init__(
        self, calls: Calls, what: str, ask: Callable[..., Any], request: Mapping[str, str], rows: str, token: str
    ) -> None:
        self._calls = calls
        self._what = what
        self._ask = ask
        self._request = request
        self._rows = rows
        self._token = token

    def pages(self, first: int, size: int = _PAGE_ROWS_MAX) -> Iterator[Page]:
        """From ``first`` to the end of the volume, without gaps. Pages that hold nothing but the token of the next are
        passed over; a token that has expired is replaced by asking again from where we are."""
        more: str | None = None
        empty = restarts = 0
        while True:
            place = {"NextToken": more} if more else {"StartingBlockIndex": first}
            try:
                answer = self._calls.repeated(self._what, lambda place=place: self._answer(size, place))  # type: ignore[misc]
            except _StalePage as stale:
                restarts += 1
                if more is None or restarts > _RESTARTS_MAX:
                    raise Unavailable(f"{self._what}: the service refuses the tokens that it gives") from stale
                more = None
                continue
            more = answer.get("NextToken")
            tokens = self._checked(answer, first)
            last = max(tokens, default=first - 1) if more else _INDEX_MAX
            empty = 0 if tokens else empty + 1
            if empty > _EMPTY_PAGES_MAX:
                raise Unavailable(f"{self._what}: the list does not end")
            if tokens or not more:
                yield Page(first, last, answer["VolumeSize"], tokens)
            if not more:
                return
            first = last + 1

    def _answer(self, size: int, place: Mapping[str, Any]) -> Any:
        try:
            return self._ask(**self._request, MaxResults=size, **place)
        except ClientError as error:
            if reason_of(error) == "INVALID_PAGE_TOKEN":
                raise _StalePage from error
            raise

    def _checked(self, answer: Mapping[str, Any], first: int) -> dict[int, str]:
        if answer.get("BlockSize") != BLOCK_BYTES or not isinstance(answer.get("VolumeSize"), int):
            raise Unsupported(
                f"{self._what}: blocks of {answer.get('BlockSize')} bytes, of {answer.get('VolumeSize')} GiB"
            )
        tokens: dict[int, str] = {}
        before = first - 1
        for row in answer.get(self._rows, []):
            index = row.get("BlockIndex")
            if not isinstance(index, int) or not before < index < _INDEX_MAX:
                raise Unsupported(f"{self._what}: the list is not in order")
            tokens[index] = str(row.get(self._token, ""))
            before = index
        return tokens


class BlockPages:
    """The pages last used. Safe between threads."""

    size = 1000  # rows: what a reader of single blocks asks for at a time

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: OrderedDict[tuple[str, int], Page] = OrderedDict()

    def covering(self, snapshot_id: str, index: int) -> Page | None:
        with self._lock:
            for (owner, _), page in self._pages.items():
                if owner == snapshot_id and page.first <= index <= page.last:
                    self._pages.move_to_end((owner, page.first))
                    return page
        return None

    def keep(self, snapshot_id: str, page: Page) -> None:
        with self._lock:
            self._pages[snapshot_id, page.first] = page
            while len(self._pages) > _KEPT_PAGES:
                self._pages.popitem(last=False)

    def forget(self, snapshot_id: str) -> None:
        with self._lock:
            for key in [key for key in self._pages if key[0] == snapshot_id]:
                del self._pages[key]


class _StalePage(Exception):
    """The service no longer takes a page's token."""
