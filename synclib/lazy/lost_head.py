"""What there is of a dataset whose head is lost or damaged, said in the error that tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synclib.core import names
from synclib.errors import BoxlinkError

if TYPE_CHECKING:
    from synclib.lazy.dataset import Dataset

_TRIES = 5
PUT_BACK = "put an older version of that object back (a bucket with versions has them), or the head of a copy"


def what_is_there(dataset: Dataset) -> str:
    """The newest manifest object that reads, and how many seqs after it have left runs; empty where nobody can say."""
    root = dataset.root
    try:
        keys = [info.key for info in dataset.store.list(names.manifest_prefix(root))]
        runs = [names.parse_run_key(root, info.key) for info in dataset.store.list(names.run_prefix(root))]
        whole = _newest(dataset, keys)
    except BoxlinkError:
        return ""
    last = max((run.seq_last for run in runs), default=0)
    if not whole:
        return f"no manifest object reads; there are runs up to seq {last}"
    seq, key = whole
    after = (
        f"the manifests of the {last - seq} seqs after it were in the head alone" if last > seq else "none came after"
    )
    return f"the newest manifest object that reads is of seq {seq} ({key}), {after}"


def _newest(dataset: Dataset, keys: list[str]) -> tuple[int, str] | None:
    for key in sorted(keys, reverse=True)[:_TRIES]:
        try:
            return dataset.read_manifest_object(key).seq, key
        except BoxlinkError:
            continue
    return None
