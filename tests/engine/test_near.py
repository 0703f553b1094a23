"""What is named in place of a path that is not there: the most alike, at a bounded cost."""

from __future__ import annotations

from pathlib import Path

from synclib.lazy.near import Near
from synclib.lazy.open import open_view
from tests.kit import Content, Kit
from tools.near_text import dataset_hint, path_hint


def test_a_name_is_found_among_many_and_few_are_looked_at(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    names: Content = {b"shelf/978%07d.jpg" % number: b"" for number in range(0, 50_000, 10)}
    kit.write({b"shelf": None, **names})
    kit.publish()
    view = open_view(kit.dataset)
    found = view.near(b"shelf/9780034561.jpg")
    assert found is not None
    assert len(found.names) <= 800
    hint = path_hint("covers", found)
    assert hint.startswith("did you mean ")
    assert "shelf/9780034560.jpg" in hint
    assert view.near(b"shelf/9780034560.jpg") is None
    assert view.near(b"/".join([b"shelf", *[b"x"] * 1000])) == view.near(b"shelf/x")


def test_hints_are_short_and_safe_to_print() -> None:
    odd = Near(b"", b"abc", [b"a\x1bc" + b"\xff" * 200])
    hint = path_hint("covers", odd)
    assert hint.isprintable()
    assert len(hint) < 200
    assert path_hint("covers", Near(b"", b"x", [])) == "covers is empty"
    assert dataset_hint("Covers", ["covers", "films"]).startswith("did you mean covers?")
    assert dataset_hint("covers", []) == ""
    assert dataset_hint("zz", [f"d{number}" for number in range(9)]) == "there are d0, d1, d2, d3, d4, …: boxlink ls"
