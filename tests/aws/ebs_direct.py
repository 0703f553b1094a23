"""The EBS direct APIs (2019-11-02) over the stand-in's snapshots."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from synclib.volume.base import BLOCK_BYTES, GIB
from tests.aws.block_tokens import PAGE_TOKEN_S, BlockTokens
from tests.aws.clock import Bucket
from tests.aws.records import ACCOUNT_ID, moment, tag_list, tags_from
from tests.aws.refusal import Refused, invalid
from tests.aws.site import Block, Site
from tests.aws.snapshots import SnapshotRecord, Snapshots

_MISMATCH = Refused("ConflictException", "the client token was used with another request", status=409)
_SIZE_GIB_MAX = 65_536
_TIMEOUT_MINUTES = 60


class EbsDirect:
    def __init__(self, site: Site, snapshots: Snapshots) -> None:
        self._site = site
        self._snapshots = snapshots
        self.tokens = BlockTokens(site.now)
        self._buckets: dict[str, Bucket] = {}

    def start_snapshot(self, params: dict[str, Any]) -> dict[str, Any]:
        self._take("ACCOUNT_THROTTLED", "start", self._site.limits.starts_per_s)
        parent = self._parent(params)
        try:
            tags = tags_from(params.get("Tags", []))
        except ValueError as error:
            raise invalid(str(error), "INVALID_TAG") from error
        token = params.get("ClientToken", "")
        known = self._site.tokens.begin("StartSnapshot", token, params, _MISMATCH)
        if known:
            record = self._snapshots.records.get(known)
            if record is None:
                raise _not_found()
            return self._started(record)
        if self._snapshots.pending_count() >= self._site.limits.pending_snapshots:
            raise Refused("ConcurrentLimitExceededException", "too many pending snapshots")
        snapshot_id = self._site.ids.new("snap")
        record = self._snapshots.add(
            SnapshotRecord(
                snapshot_id,
                params["VolumeSize"],
                self._site.timeline("pending"),
                self._site.now(),
                self._site.clock.wall_ns(),
                parent.root if parent else snapshot_id,
                tags,
                base=parent.blocks() if parent else {},
                parent_id=parent.id if parent else "",
                description=params.get("Description", ""),
                timeout_s=params.get("Timeout", _TIMEOUT_MINUTES) * 60.0,
                put_at=self._site.now(),
                is_open=True,
            )
        )
        self._site.tokens.end("StartSnapshot", token, snapshot_id)
        return self._started(record)

    def put_snapshot_block(self, params: dict[str, Any]) -> dict[str, Any]:
        record, index, data = self._open(params["SnapshotId"]), params["BlockIndex"], params["BlockData"]
        if index >= record.size_gib * GIB // BLOCK_BYTES:
            raise invalid("the block is beyond the volume's end", "INVALID_BLOCK")
        if len(data) != BLOCK_BYTES or params["DataLength"] != BLOCK_BYTES:
            raise invalid(f"a block has {BLOCK_BYTES} bytes", "INVALID_BLOCK")
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        if params["Checksum"] != digest:
            raise invalid("the checksum is not the data's", "INVALID_BLOCK")
        self._take("RESOURCE_LEVEL_THROTTLE", f"put {record.id}", self._site.limits.puts_per_s)
        record.written[index] = self._site.blocks.add(data)
        record.put_at = self._site.now()
        return {"Checksum": digest, "ChecksumAlgorithm": "SHA256"}

    def complete_snapshot(self, params: dict[str, Any]) -> dict[str, Any]:
        self._take("ACCOUNT_THROTTLED", "complete", self._site.limits.starts_per_s)
        record = self._open(params["SnapshotId"])
        words = [name in params for name in ("Checksum", "ChecksumAlgorithm", "ChecksumAggregationMethod")]
        if any(words) and not all(words):
            raise invalid("a checksum has an algorithm and an aggregation method")
        digests = b"".join(block.digest for _, block in sorted(record.written.items()))
        checksum = base64.b64encode(hashlib.sha256(digests).digest()).decode()
        is_right = params["ChangedBlocksCount"] == len(record.written) and params.get("Checksum", checksum) == checksum
        record.is_open = False
        end = "completed" if is_right else "error"
        record.status.set("pending", then=end, after_s=self._site.delays.complete_s)
        return {"Status": "pending"}

    def list_snapshot_blocks(self, params: dict[str, Any]) -> dict[str, Any]:
        record = self._completed(params["SnapshotId"])

        def row(index: int) -> dict[str, Any]:
            return {"BlockIndex": index, "BlockToken": self.tokens.for_block(record.id, index)}

        return self._page(params, record, f"written {record.id}", sorted(record.blocks()), "Blocks", row)

    def list_changed_blocks(self, params: dict[str, Any]) -> dict[str, Any]:
        second = self._completed(params["SecondSnapshotId"])
        first = self._completed(params["FirstSnapshotId"]) if "FirstSnapshotId" in params else None
        if first is not None and first.root != second.root:
            raise invalid("the snapshots are not of one lineage", "UNRELATED_SNAPSHOTS")
        before: dict[int, Block] = first.blocks() if first else {}
        after = second.blocks()
        indices = sorted(index for index in before.keys() | after.keys() if before.get(index) != after.get(index))

        def row(index: int) -> dict[str, Any]:
            found: dict[str, Any] = {"BlockIndex": index}
            if first and index in before:
                found["FirstBlockToken"] = self.tokens.for_block(first.id, index)
            if index in after:
                found["SecondBlockToken"] = self.tokens.for_block(second.id, index)
            return found

        listing = f"changed {first.id if first else ''} {second.id}"
        return self._page(params, second, listing, indices, "ChangedBlocks", row)

    def get_snapshot_block(self, params: dict[str, Any]) -> dict[str, Any]:
        record, index = self._completed(params["SnapshotId"]), params["BlockIndex"]
        self.tokens.check_block(params["BlockToken"], record.id, index)
        self._take("RESOURCE_LEVEL_THROTTLE", f"get {record.id}", self._site.limits.gets_per_s)
        block = record.blocks()[index]
        data = self._site.blocks.read(block)
        if (record.id, index) in self._site.script.flipped_blocks:
            data = bytes([data[0] ^ 1]) + data[1:]
        return {
            "DataLength": BLOCK_BYTES,
            "BlockData": data,
            "Checksum": base64.b64encode(block.digest).decode(),
            "ChecksumAlgorithm": "SHA256",
        }

    def _parent(self, params: dict[str, Any]) -> SnapshotRecord | None:
        size_gib = params["VolumeSize"]
        if size_gib > _SIZE_GIB_MAX:
            raise invalid(f"a volume has at most {_SIZE_GIB_MAX} GiB", "INVALID_VOLUME_SIZE")
        if "KmsKeyArn" in params and not params.get("Encrypted"):
            raise invalid("a key is for an encrypted snapshot")
        if "ParentSnapshotId" not in params:
            return None
        if "Encrypted" in params:
            raise invalid("Encrypted and ParentSnapshotId exclude each other")
        parent = self._completed(params["ParentSnapshotId"])
        if size_gib < parent.size_gib:
            raise invalid("the volume is smaller than the parent's", "INVALID_VOLUME_SIZE")
        return parent

    def _found(self, snapshot_id: str) -> SnapshotRecord:
        record = self._snapshots.visible(snapshot_id)
        if record is None:
            raise _not_found()
        return record

    def _completed(self, snapshot_id: str) -> SnapshotRecord:
        record = self._found(snapshot_id)
        if self._snapshots.state(record) != "completed":
            raise invalid("the snapshot is not completed", "INVALID_SNAPSHOT_ID")
        return record

    def _open(self, snapshot_id: str) -> SnapshotRecord:
        record = self._found(snapshot_id)
        if self._snapshots.state(record) != "pending" or not record.is_open:
            raise invalid("the snapshot takes no blocks", "INVALID_SNAPSHOT_ID")
        return record

    def _started(self, record: SnapshotRecord) -> dict[str, Any]:
        answer = {
            "Description": record.description,
            "SnapshotId": record.id,
            "OwnerId": ACCOUNT_ID,
            "Status": self._snapshots.state(record),
            "StartTime": moment(record.started_ns),
            "VolumeSize": record.size_gib,
            "BlockSize": BLOCK_BYTES,
            "Tags": tag_list(record.tags),
            "ParentSnapshotId": record.parent_id,
        }
        return {name: value for name, value in answer.items() if value not in ("", [])}

    def _page(
        self,
        params: dict[str, Any],
        record: SnapshotRecord,
        listing: str,
        indices: list[int],
        name: str,
        row: Callable[[int], dict[str, Any]],
    ) -> dict[str, Any]:
        """One page of a listing; its first may be empty, and pages are as short as the test's script says."""
        self._take("ACCOUNT_THROTTLED", "list", self._site.limits.lists_per_s)
        is_first = "NextToken" not in params
        if is_first:
            start = params.get("StartingBlockIndex", 0)
        else:
            start = self.tokens.page_start(params["NextToken"], listing)
        size = min(params.get("MaxResults", 10_000), self._site.limits.blocks_page)
        if is_first and self._site.script.is_empty_page_first:
            size = 0
        rows, more = _cut(indices, start, size)
        answer: dict[str, Any] = {
            name: [row(index) for index in rows],
            "ExpiryTime": moment(self._site.clock.wall_ns() + int(PAGE_TOKEN_S * 1e9)),
            "VolumeSize": record.size_gib,
            "BlockSize": BLOCK_BYTES,
        }
        return answer if more is None else answer | {"NextToken": self.tokens.for_page(listing, more)}

    def _take(self, reason: str, name: str, rate: float) -> None:
        if not self._buckets.setdefault(name, Bucket(self._site.now, rate)).take():
            raise Refused("RequestThrottledException", "The rate of requests is exceeded.", reason=reason)


def _not_found() -> Refused:
    return Refused("ResourceNotFoundException", "The snapshot does not exist.", reason="SNAPSHOT_NOT_FOUND", status=404)


def _cut(indices: list[int], start: int, size: int) -> tuple[list[int], int | None]:
    """The first ``size`` indices from ``start`` on, and where the next page begins."""
    rest: Iterator[int] = (index for index in indices if index >= start)
    rows = [index for _, index in zip(range(size), rest, strict=False)]
    return rows, next(rest, None)
