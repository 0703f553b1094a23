"""A log's line for a person."""

from __future__ import annotations

import json

import pytest

from tools.log_text import line_text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            json.dumps({"seq": 3, "event": "published", "role": "sync", "level": "info", "at": "2026-01-01T00:00:00Z"}),
            "2026-01-01T00:00:00Z sync: published seq=3",
        ),
        (json.dumps({"event": "failed", "level": "warning", "hint": ""}), "warning failed"),
        (json.dumps({"event": "e", "a": [1, 2], "b": {"c": True}, "d": None, "f": []}), "e a=1, 2 b=c yes f=none"),
        (json.dumps({"event": "e", "a": [[[["x"]]]]}), "e a=…"),
        ("127.0.0.1 GET /", "127.0.0.1 GET /"),
        ("[1, 2]", "[1, 2]"),
        ('{"event": "cut', '{"event": "cut'),
        ("[" * 100_000, "[" * 100_000),
        ("", ""),
    ],
)
def test_words(line: str, text: str) -> None:
    assert line_text(line) == text
