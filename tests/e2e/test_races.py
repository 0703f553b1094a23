"""Two real publishers of one machine at once: both end in the history, and nothing of either is lost."""

from __future__ import annotations

import random
from pathlib import Path

from synclib.core.names import dataset_root
from synclib.store.open import open_store
from tests.e2e.boxlink_process import Machine, end_session
from tests.kit import Content, Kit, read_tree

ROUNDS = 10


class Race:
    def __init__(self, place: Path, dataset: str) -> None:
        self.machine = Machine(place)
        self.machine.run("init")
        self.dataset = dataset
        self.kit = Kit(place / "check", open_store(self.machine.store, {})[0])
        self.kit.dataset.root, self.kit.dataset.name = dataset_root(dataset), dataset
        self.place = place
        self.contents: list[Content] = [{}, {}]
        self.seq = 0

    def directory(self, who: int) -> Path:
        return self.place / f"{self.dataset}{who}"

    def run(self) -> Content:
        """Both publish at once; both must be in the history. What the dataset holds then."""
        for who, content in enumerate(self.contents):
            self.directory(who).mkdir(exist_ok=True)
            self.kit.write(content, self.directory(who))
        publishers = [self.machine.start("publish", self.dataset, self.directory(who)) for who in range(2)]
        try:
            for process in publishers:
                out, err = process.communicate(timeout=60)
                assert process.returncode == 0, (out, err)
        finally:
            for process in publishers:
                end_session(process)
        self.seq += 2
        log = self.machine.json("log", self.dataset)
        assert (log["seq"], log["seqs"]) == (self.seq, list(range(1, self.seq + 1)))
        out_directory = self.place / f"out-{self.dataset}"
        self.kit.restore(out_directory)
        return read_tree(out_directory)

    def check(self) -> None:
        assert self.machine.json("verify", self.dataset, "--data")["damage"] == []
        for seq in range(1, self.seq + 1):
            assert self.kit.verify(seq).damage == []
        assert list(self.kit.store.list(f"data/{self.dataset}/intent/")) == []


def test_two_publishers_at_once_without_bases(tmp_path: Path) -> None:
    """Into an empty dataset. Who begins when the other is done already makes the dataset its own directory, as without
    a base it must; when they truly meet, both are in it: that has to happen."""
    entropy = random.Random(8)
    met = 0
    for number in range(ROUNDS):
        race = Race(tmp_path, f"d{number}")
        race.contents = [{b"%d" % who: entropy.randbytes(20_000)} for who in range(2)]
        both = {**race.contents[0], **race.contents[1]}
        found = race.run()
        assert found in (both, *race.contents)
        met += found == both
        race.check()
    assert met


def test_two_publishers_at_once_with_bases(tmp_path: Path) -> None:
    entropy = random.Random(9)
    race = Race(tmp_path, "covers")
    race.directory(0).mkdir()
    race.kit.write({b"both": b"0"}, race.directory(0))
    race.machine.run("publish", "covers", race.directory(0))
    race.machine.run("restore", "covers", race.directory(1))
    race.contents = [{b"both": b"0"}, {b"both": b"0"}]
    race.seq = 1
    for number in range(ROUNDS):
        for who, content in enumerate(race.contents):
            name = b"%d-%d" % (who, entropy.randrange(8))
            if name in content and entropy.random() < 0.3:
                del content[name]
            content[b"new-%d-%d" % (who, number)] = content[name] = entropy.randbytes(20_000)
        assert race.run() == {**race.contents[0], **race.contents[1]}
    race.check()
