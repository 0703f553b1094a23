"""A program that makes a snapshot by way of a volume, as ``boxlink snapshot create --volume`` does, and is killed at a
call of its driver: just before it is carried out, or when it is done (test_snapshot_verbs.py)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.names import dataset_root
from synclib.engine.host import Host, no_progress
from synclib.engine.snapshot_volume import create_from_volume
from synclib.lazy.dataset import Dataset
from synclib.store.open import open_store
from synclib.volume.local import LocalDriver


def main(place: Path, volume_id: str, method: str, when: str) -> None:
    host = Host("n1", SystemClock(), SystemEntropy(), place / "state/boxlink", place / "cache/boxlink")
    driver = LocalDriver(host.state / "volumes", host.clock)
    real = getattr(driver, method)

    def dies(*words: Any, **named: Any) -> None:
        if when == "after":
            real(*words, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(driver, method, dies)
    store, _ = open_store(f"file://{place}/store", {})
    create_from_volume(Dataset(store, dataset_root("covers")), host, driver, volume_id, "n1", no_progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
