from __future__ import annotations

from pathlib import Path

import pytest

from synclib.errors import Invalid, Missing
from synclib.store.open import open_store, prepare_store
from synclib.store.retry import RetryStore


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "file:///DIR"),
        ("nonsense", "file:///DIR"),
        ("ftp://x/y", "file:///DIR"),
        ("/srv/store", "file:///DIR"),
        ("file://store", "file:///store"),
        ("file://", "three slashes"),
        ("file:///a%00b", ""),
        ("s3://", "s3://BUCKET"),
        ("s3:///prefix", "s3://BUCKET"),
        ("s3://Bucket", "lower case"),
        ("s3://bucket/../other", ""),
        ("s3://bucket//other", ""),
    ],
)
def test_urls_that_name_no_store(url: str, hint: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_store(url, {})
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["plain", "with space", "50%", "é", "a?b#c"])
def test_directories_are_percent_encoded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    from urllib.parse import quote

    store, _ = open_store(f"file://{tmp_path}/{quote(name)}", {})
    store.put("a", b"1")
    assert (tmp_path / name / "a").read_bytes() == b"1"
    again, _ = open_store(store.url, {})
    assert again.get_suffix("a", 9).data == b"1"


def test_a_trailing_slash_is_no_other_store(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/", {})[0].url == open_store(f"file://{tmp_path}", {})[0].url


def test_each_try_is_counted() -> None:
    store, meter = open_store("memory://x", {})
    assert isinstance(store, RetryStore)
    with pytest.raises(Missing):
        store.get("a", size_max=1)
    assert meter.requests["get"] == 1


def test_a_directory_is_prepared_and_not_made_by_use(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/new"
    store, _ = open_store(url, {})
    with pytest.raises(Missing) as caught:
        store.put("a", b"")
    assert f"init --store {url}" in caught.value.hint
    assert not (tmp_path / "new").exists()
    prepare_store(url, {})
    prepare_store(url, {})
    store.put("a", b"")
    assert (tmp_path / "new" / "a").exists()
