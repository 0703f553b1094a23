"""Two real publishers of one machine at once: both end in the history, and nothing of either is lost."""

from __future__ import annotations

import random
from pathlib import Path

from synclib.store.open import open_store
from tests.e2e.boxlink_process import Machine, end_session
from tests.kit import Content, Kit, read_tree

ROUNDS = 10


def test_two_publishers_at_once(tmp_path: Path) -> None:
    """Each has a base; without one a publish that begins after the other's commit makes the dataset its directory."""
    entropy = random.Random(9)
    machine = Machine(tmp_path)
    machine.run("init")
    kit = Kit(tmp_path / "check", open_store(machine.store, {})[0])
    contents: list[Content] = [{b"seed": b"seed"}, {b"seed": b"seed"}]
    for who in range(2):
        (tmp_path / f"source{who}").mkdir()
        kit.write(contents[who], tmp_path / f"source{who}")
        machine.run("publish", "covers", tmp_path / f"source{who}")
    seq = kit.dataset.read_head().manifest.seq
    for number in range(ROUNDS):
        for who, content in enumerate(contents):
            name = b"%d-%d" % (who, entropy.randrange(8))
            if name in content and entropy.random() < 0.3:
                del content[name]
            content[b"new-%d-%d" % (who, number)] = content[name] = entropy.randbytes(20_000)
            kit.write(content, tmp_path / f"source{who}")
        publishers = [machine.start("publish", "covers", tmp_path / f"source{who}") for who in range(2)]
        try:
            for process in publishers:
                out, err = process.communicate(timeout=60)
                assert process.returncode == 0, (out, err)
        finally:
            for process in publishers:
                end_session(process)
        seq += 2
        log = machine.json("log", "covers")
        assert (log["seq"], log["seqs"]) == (seq, list(range(1, seq + 1)))
        kit.restore(tmp_path / "out")
        assert read_tree(tmp_path / "out") == {**contents[0], **contents[1]}
    assert machine.json("verify", "covers", "--data")["damage"] == []
    for older in range(1, seq + 1):
        assert kit.verify(older).damage == []
    assert list(kit.store.list("data/covers/intent/")) == []
