"""Snapshots block by block over the EBS direct APIs (2019-11-02): paced, checked both ways, repeated where it is safe.

Writing the same block again, and asking, may be repeated; StartSnapshot carries a token; a CompleteSnapshot whose
answer was lost is refused when it comes again, and counts as done: whether it holds shows when the snapshot completes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from synclib.errors import Conflict, Corrupt, Invalid, Unavailable, Unsupported
from synclib.store.outcome import NotApplied
from synclib.volume.aws_calls import Calls
from synclib.volume.aws_errors import code_of, message_of, reason_of
from synclib.volume.base import BLOCK_BYTES, GIB, Snapshot
from synclib.volume.block_pages import BlockPages, Listing, Page
from synclib.volume.ebs_answers import PARENT_TAG, TOKEN_TAG, snapshot_from
from synclib.volume.pace import Pace

PUTS_PER_S = 1000.0  # of one snapshot (EBS service quotas)
_PACE = 0.95  # of what the service takes: its clock is not ours
_PENDING_MINUTES = 24 * 60  # a snapshot that gets no block for so long fails; a killed caller comes back before
_NEW_S = 150.0  # a snapshot may not be found for so long after its start
_READ_BYTES = 128 << 10
_BODY_S = 60.0
_GET_TRIES = 4
_CLIENT_TOKEN_MAX = 255


class EbsBlocks:
    puts_per_s = PUTS_PER_S

    def __init__(self, ebs: Any, calls: Calls) -> None:
        self._ebs = ebs
        self._calls = calls
        self._put_pace = Pace(PUTS_PER_S * _PACE, calls.clock)
        self._get_pace = Pace(PUTS_PER_S * _PACE, calls.clock)
        self._pages = BlockPages()
        self._started_at: dict[str, float] = {}

    def start(self, *, size_gib: int, parent_id: str, token: str, tags: Mapping[str, str]) -> Snapshot:
        own = {TOKEN_TAG: token[:256], **({PARENT_TAG: parent_id} if parent_id else {})}
        request = {
            "VolumeSize": size_gib,
            "ClientToken": token if 0 < len(token) <= _CLIENT_TOKEN_MAX else hashlib.sha256(token.encode()).hexdigest(),
            "Timeout": _PENDING_MINUTES,
            "Tags": [{"Key": key, "Value": value} for key, value in sorted({**tags, **own}.items())],
            **({"ParentSnapshotId": parent_id} if parent_id else {}),
        }
        answer = self._calls.repeated("start a snapshot", lambda: self._ebs.start_snapshot(**request))
        if answer.get("BlockSize") != BLOCK_BYTES:
            raise Unsupported(f"the service has blocks of {answer.get('BlockSize')} bytes, not of {BLOCK_BYTES}")
        snapshot = snapshot_from(answer)
        self._started_at[snapshot.id] = self._calls.clock.monotonic()
        return snapshot

    def put(self, snapshot_id: str, index: int, data: bytes | memoryview) -> bytes:
        if len(data) != BLOCK_BYTES:
            raise Invalid(f"a block has {BLOCK_BYTES} bytes, not {len(data)}")
        digest = hashlib.sha256(data).digest()
        what = f"write block {index} of {snapshot_id}"

        def attempt() -> Any:
            self._put_pace.wait()
            return self._new_or_raise(
                snapshot_id,
                what,
                lambda: self._ebs.put_snapshot_block(
                    SnapshotId=snapshot_id,
                    BlockIndex=index,
                    BlockData=bytes(data),
                    DataLength=BLOCK_BYTES,
                    Checksum=_base64(digest),
                    ChecksumAlgorithm="SHA256",
                ),
            )

        answer = self._calls.repeated(what, attempt, deadline_s=_NEW_S)
        if answer.get("Checksum") != _base64(digest):
            raise Corrupt(f"{what}: the service says that it holds something else", hint="try again")
        return digest

    def complete(self, snapshot_id: str, *, changed_count: int, checksum: bytes) -> None:
        what = f"complete {snapshot_id}"
        is_unanswered = False

        def attempt() -> None:
            nonlocal is_unanswered
            try:
                self._calls.once(
                    what,
                    lambda: self._new_or_raise(
                        snapshot_id,
                        what,
                        lambda: self._ebs.complete_snapshot(
                            SnapshotId=snapshot_id,
                            ChangedBlocksCount=changed_count,
                            Checksum=_base64(checksum),
                            ChecksumAlgorithm="SHA256",
                            ChecksumAggregationMethod="LINEAR",
                        ),
                    ),
                )
            except Conflict:
                if not is_unanswered:
                    raise
            except Unavailable as error:
                is_unanswered = is_unanswered or not isinstance(error, NotApplied)
                raise

        self._calls.repeated(what, attempt, deadline_s=_NEW_S)

    def written(self, snapshot_id: str) -> Iterator[int]:
        for page in self._listing(snapshot_id).pages(0):
            yield from page.tokens

    def changed(self, first_id: str, second_id: str) -> Iterator[int]:
        """Blocks that were written between the two; one that was written with what it held is among them."""
        what = f"compare {first_id} with {second_id}"
        request = {"FirstSnapshotId": first_id, "SecondSnapshotId": second_id}
        listing = Listing(
            self._calls, what, self._ebs.list_changed_blocks, request, "ChangedBlocks", "SecondBlockToken"
        )
        for page in listing.pages(0):
            yield from page.tokens

    def get(self, snapshot_id: str, index: int) -> bytes:
        error: Exception | None = None
        for _ in range(_GET_TRIES):
            page = self._page(snapshot_id, index)
            if index >= page.size_gib * GIB // BLOCK_BYTES:
                raise Invalid(f"{snapshot_id} has no block {index}: its volume has {page.size_gib} GiB")
            token = page.tokens.get(index)
            if token is None:
                return bytes(BLOCK_BYTES)
            try:
                return self._fetched(snapshot_id, index, token)
            except Corrupt as corrupt:
                error = corrupt
            except _StaleToken as stale:
                self._pages.forget(snapshot_id)
                error = stale
        if isinstance(error, Corrupt):
            raise error
        raise Unavailable(
            f"read block {index} of {snapshot_id}: the service refuses the tokens that it gives"
        ) from error

    def _page(self, snapshot_id: str, index: int) -> Page:
        """The part of the list of blocks that covers an index."""
        page = self._pages.covering(snapshot_id, index)
        if page is None:
            page = next(self._listing(snapshot_id).pages(index, self._pages.size))
            self._pages.keep(snapshot_id, page)
        return page

    def _listing(self, snapshot_id: str) -> Listing:
        request = {"SnapshotId": snapshot_id}
        what = f"list the blocks of {snapshot_id}"
        return Listing(self._calls, what, self._ebs.list_snapshot_blocks, request, "Blocks", "BlockToken")

    def _fetched(self, snapshot_id: str, index: int, token: str) -> bytes:
        what = f"read block {index} of {snapshot_id}"

        def attempt() -> bytes:
            self._get_pace.wait()
            try:
                answer = self._ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=index, BlockToken=token)
                data = self._body(answer["BlockData"], what)
            except ClientError as error:
                if reason_of(error) == "INVALID_BLOCK_TOKEN":
                    raise _StaleToken from error
                raise
            if len(data) != BLOCK_BYTES:
                raise Unavailable(f"{what}: {len(data)} bytes came")
            if answer.get("ChecksumAlgorithm") != "SHA256":
                raise Unsupported(f"{what}: its checksum is no SHA256")
            if answer.get("Checksum") != _base64(hashlib.sha256(data).digest()):
                raise Corrupt(f"{what}: its bytes are not what its checksum says", hint="take another snapshot")
            return data

        return self._calls.repeated(what, attempt)

    def _body(self, body: Any, what: str) -> bytes:
        """An answer's body, of bounded length and in bounded time."""
        stop = self._calls.clock.monotonic() + _BODY_S
        parts = bytearray()
        while len(parts) <= BLOCK_BYTES:
            part = body.read(min(_READ_BYTES, BLOCK_BYTES + 1 - len(parts)))
            if not part:
                break
            parts += part
            if self._calls.clock.monotonic() > stop:
                body.close()
                raise Unavailable(f"{what}: the answer takes too long")
        return bytes(parts)

    def _new_or_raise(self, snapshot_id: str, what: str, call: Callable[[], Any]) -> Any:
        """A snapshot that was begun a moment ago and is not found is only not seen yet."""
        try:
            return call()
        except ClientError as error:
            begun = self._started_at.get(snapshot_id, float("-inf"))
            is_new = self._calls.clock.monotonic() < begun + _NEW_S
            if code_of(error) == "ResourceNotFoundException" and is_new:
                raise NotApplied(f"{what}: it is not seen yet") from error
            if reason_of(error) == "CONFLICTING_BLOCK_UPDATE":
                raise NotApplied(f"{what}: another write of it is under way") from error
            if reason_of(error) in ("INVALID_SNAPSHOT_ID", "WRITE_REQUEST_TIMEOUT"):
                raise Conflict(
                    f"{what}: it takes no more: {message_of(error)}",
                    hint="see its state (boxlink snapshot ls): it is completed, or was left too long and is in error",
                ) from error
            raise


class _StaleToken(Exception):
    """The service no longer takes a block's token: list again."""


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
