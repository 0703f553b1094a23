"""The parts of a first boot against what they must agree with (RFC 8032, botocore, our schemas), and hostile input."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import random
import stat
import sys
import tarfile
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from synclib.core import signing, zstd
from synclib.core.release import Statement as Schema
from synclib.errors import BoxlinkError
from tools.bootstrap import ed25519
from tools.bootstrap.build import build_bootstrap
from tools.bootstrap.environment import pip_wheel
from tools.bootstrap.failure import Failure
from tools.bootstrap.send_log import zstd_frame
from tools.bootstrap.sigv4 import Credentials, quoted, signed_headers
from tools.bootstrap.statement import BYTES_MAX, check, parse_statement, trusted_keys
from tools.bootstrap.unpack import unpack
from tools.bootstrap.user_data import parse_user_data

SIGNER = signing.Signer(signing.private_pem(bytes(range(32))))
STATEMENT = Schema(
    release="fleet", seq=3, digest="a" * 64, boot_sha256="b" * 64, boot_bytes=10, at="2026-11-30T00:00:00Z",
    bootstrap_sha256="c" * 64, key=SIGNER.public,
)  # fmt: skip


class TestEd25519:
    # RFC 8032, section 7.1: tests 1, 2 and 3.
    VECTORS = (
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            (
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bb"
                "e24655141438e7a100b"
            ),
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            (
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302"
                "aeeb00d291612bb0c00"
            ),
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            (
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed"
                "28dc027beceea1ec40a"
            ),
        ),
    )

    @pytest.mark.parametrize(("public", "data", "signature"), VECTORS)
    def test_vectors(self, public: str, data: str, signature: str) -> None:
        values = bytes.fromhex(data), bytes.fromhex(public), bytes.fromhex(signature)
        assert ed25519.is_signed(*values)
        assert signing.is_signed(values[0], public, signature)
        assert not ed25519.is_signed(values[0] + b"x", *values[1:])

    @given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
    def test_takes_what_the_library_signs(self, data: bytes, seed: bytes) -> None:
        signer = signing.Signer(signing.private_pem(seed))
        assert ed25519.is_signed(data, bytes.fromhex(signer.public), bytes.fromhex(signer.sign(data)))

    @given(st.integers(0, 95), st.integers(1, 255), st.binary(max_size=20))
    @example(63, 0x80, b"")
    def test_refuses_what_the_library_refuses(self, at: int, flip: int, data: bytes) -> None:
        both = bytearray(bytes.fromhex(SIGNER.public) + bytes.fromhex(SIGNER.sign(data)))
        both[at] ^= flip
        public, signature = bytes(both[:32]), bytes(both[32:])
        assert not ed25519.is_signed(data, public, signature)
        assert not signing.is_signed(data, public.hex(), signature.hex())

    @given(st.binary(max_size=70), st.binary(max_size=70))
    def test_any_bytes(self, public: bytes, signature: bytes) -> None:
        assert not ed25519.is_signed(b"data", public, signature)

    def test_one_signature_has_one_form(self) -> None:
        """S and S + L would both satisfy the equation (RFC 8032, section 8.4)."""
        signature = bytes.fromhex(SIGNER.sign(b"data"))
        other = int.from_bytes(signature[32:], "little") + ed25519.L
        assert not ed25519.is_signed(
            b"data", bytes.fromhex(SIGNER.public), signature[:32] + other.to_bytes(32, "little")
        )


@given(st.integers(0, 700_000), st.binary(max_size=5))
@example(0, b"")
@example(128 << 10, b"")
def test_a_frame_is_zstandards(size: int, start: bytes) -> None:
    data = start + bytes(number % 251 for number in range(size))
    frame = zstd_frame(data)
    assert zstd.content_size(frame) == len(data)
    assert zstd.decompress(frame, len(data)) == data


class TestSigV4:
    @given(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30),
        st.sampled_from(["us-east-1", "eu-central-1"]),
        st.sampled_from(["", "token+/="]),
    )
    @example("a b+c%~(é)*'", "us-east-1", "")
    def test_is_botocores(self, key: str, region: str, token: str) -> None:
        path = quoted(f"/bucket/{key.replace('/', '-')}")
        request = AWSRequest("GET", f"http://127.0.0.1:9000{path}")
        request.headers["x-amz-content-sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        auth = S3SigV4Auth(BotoCredentials("AKID", "secret", token or None), "s3", region)
        auth.add_auth(request)
        ours = signed_headers(
            "127.0.0.1:9000", path, region, Credentials("AKID", "secret", token), request.context["timestamp"]
        )
        theirs = request.headers["Authorization"].replace(", ", ",")
        assert ours["Authorization"] == theirs

    @given(st.binary(max_size=100))
    def test_a_put_is_botocores(self, body: bytes) -> None:
        request = AWSRequest("PUT", "http://127.0.0.1:9000/bucket/log/n/a.log/0", data=body)
        request.headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
        request.headers["if-none-match"] = "*"
        S3SigV4Auth(BotoCredentials("AKID", "secret"), "s3", "us-east-1").add_auth(request)
        ours = signed_headers(
            "127.0.0.1:9000", "/bucket/log/n/a.log/0", "us-east-1", Credentials("AKID", "secret"),
            request.context["timestamp"], {"if-none-match": "*"}, "PUT", body,
        )  # fmt: skip
        assert ours["Authorization"] == request.headers["Authorization"].replace(", ", ",")

    def test_what_aws_publishes(self) -> None:
        """The GET of the guide's examples, with its Range header."""
        keys = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
        headers = signed_headers(
            "examplebucket.s3.amazonaws.com", "/test.txt", "us-east-1", keys, "20130524T000000Z", {"range": "bytes=0-9"}
        )
        signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        assert headers["Authorization"].endswith(f"Signature={signature}")

    def test_a_secret_is_not_shown(self) -> None:
        assert "secret" not in repr(Credentials("id", "secret", "secret"))


class TestStatement:
    @given(st.integers(1, (1 << 63) - 1), st.integers(1, 16 << 30), st.sampled_from(["", "d" * 64]))
    def test_the_same_text_is_signed(self, seq: int, size: int, bootstrap: str) -> None:
        schema = STATEMENT.model_copy(update={"seq": seq, "boot_bytes": size, "bootstrap_sha256": bootstrap})
        schema = schema.model_copy(update={"signature": SIGNER.sign(schema.signed_bytes())})
        found = parse_statement(schema.model_dump_json().encode(), "fleet", None)
        assert found.signed_bytes() == schema.signed_bytes()
        assert check(found, {SIGNER.public}, "")

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"release": "other"}, "release"), ({"seq": 0}, "seq"), ({"seq": 4}, "seq"), ({"seq": True}, "seq"),
            ({"seq": 1.5}, "seq"), ({"v": 2}, "v"), ({"boot_sha256": "B" * 64}, "boot_sha256"),
            ({"boot_sha256": "b" * 64 + "\n"}, "boot_sha256"), ({"boot_bytes": 1 << 50}, "boot_bytes"),
            ({"at": "x\ndigest=1"}, "at"), ({"key": "zz"}, "key"), ({"signature": "00"}, "signature"),
            ({"digest": None}, "digest"), ({"more": 1}, "is none"),
        ],
    )  # fmt: skip
    def test_hostile(self, change: dict[str, object], why: str) -> None:
        data = json.dumps({**STATEMENT.model_dump(), **change}).encode()
        with pytest.raises(Failure, match=why):
            parse_statement(data, "fleet", 3)

    @given(st.binary(max_size=300))
    @example(b"[" * 100_000)
    @example(b'{"v":1}')
    @example(b" " * (BYTES_MAX + 1))
    def test_any_bytes(self, data: bytes) -> None:
        with pytest.raises(Failure):
            parse_statement(data, "fleet", None)

    def test_pinned_or_signed_or_refused(self) -> None:
        signed = STATEMENT.model_copy(update={"signature": SIGNER.sign(STATEMENT.signed_bytes())})
        found = parse_statement(signed.model_dump_json().encode(), "fleet", 3)
        assert check(found, {SIGNER.public}, "")
        assert check(found, {SIGNER.public}, "b" * 64)
        assert not check(found, set(), "b" * 64)
        with pytest.raises(Failure, match="not trusted"):
            check(found, set(), "")
        with pytest.raises(Failure, match="pins"):
            check(found, {SIGNER.public}, "d" * 64)
        forged = parse_statement(signed.model_copy(update={"boot_bytes": 11}).model_dump_json().encode(), "fleet", 3)
        for pin in ("", "b" * 64):
            with pytest.raises(Failure, match="signature is wrong"):
                check(forged, {SIGNER.public}, pin)
        unsigned = parse_statement(STATEMENT.model_copy(update={"key": ""}).model_dump_json().encode(), "fleet", 3)
        with pytest.raises(Failure, match="not signed"):
            check(unsigned, {SIGNER.public}, "")

    def test_keys_are_files_of_one_line(self, tmp_path: Path) -> None:
        assert trusted_keys(tmp_path / "nosuch") == set()
        (tmp_path / "a.pub").write_text(f"# fleet\n{SIGNER.public}\n")
        (tmp_path / "a.key").write_text("no key")
        assert trusted_keys(tmp_path) == {SIGNER.public}
        assert signing.parse_public((tmp_path / "a.pub").read_bytes()) == SIGNER.public
        (tmp_path / "b.pub").write_text("no key")
        with pytest.raises(Failure, match=r"b\.pub is no public key"):
            trusted_keys(tmp_path)


GOOD = b'store = "s3://b/p"\nrole = "render"\nrelease = "fleet@3"\n'


class TestUserData:
    def test_good(self) -> None:
        found = parse_user_data(GOOD + b'run = ["boxlink", "up", "{data}"]\nsha256 = "' + b"a" * 64 + b'"\n')
        assert (found.release, found.seq, found.run[0]) == ("fleet", 3, "boxlink")
        assert parse_user_data(GOOD.replace(b"@3", b"")).seq is None

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "has no release"),
            (b"#!/bin/sh\nrm -rf /", "no TOML"),
            (GOOD + b"password = 'hunter2'", "unknown key 'password'"),
            (GOOD + b"[nested]\na = 1", "unknown key 'nested'"),
            (GOOD.replace(b"fleet@3", b"../../x"), "release is none"),
            (GOOD.replace(b"fleet@3", b"fleet@0"), "release is none"),
            (GOOD.replace(b"fleet@3", b"fleet@3@4"), "release is none"),
            (GOOD.replace(b"fleet@3", b"fleet@" + b"9" * 30), "release is none"),
            (GOOD.replace(b"render", b"../render"), "role is none"),
            (GOOD.replace(b'"render"', b"3"), "role is no text"),
            (GOOD.replace(b"s3://", b"http://"), "store is none"),
            (GOOD.replace(b"s3://b/p", b"s3://b\\np"), "store is none"),
            (GOOD + b'sha256 = "xyz"', "sha256 is none"),
            (GOOD + b'sha256 = ""', "sha256 is no text"),
            (GOOD + b'run = "boxlink up"', "no list of words"),
            (GOOD + b"run = []", "no list of words"),
            (GOOD + b'run = ["a", 1]', "no word"),
            (GOOD + b'run = ["a\\u0000"]', "no word"),
            (GOOD + b'run = [""]', "no program"),
            (GOOD + b"run = [" + b'"a",' * 257 + b"]", "no list of words"),
            (GOOD + b"#" * (16 << 10), "more than 16384 bytes"),
            (b"\xff\xfe", "no TOML"),
            (b"a=" + b"[" * 10_000, "no TOML"),
        ],
    )
    def test_hostile(self, data: bytes, why: str) -> None:
        with pytest.raises(Failure, match=why) as caught:
            parse_user_data(data)
        assert "hunter2" not in str(caught.value)

    @given(st.binary(max_size=400))
    def test_any_bytes(self, data: bytes) -> None:
        with pytest.raises(Failure):
            parse_user_data(data)


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6777
    return info, data


class TestUnpack:
    def unpack(self, place: Path, data: bytes) -> Path:
        (place / "archive").write_bytes(data)
        out = place / "top/out"
        out.mkdir(parents=True)
        unpack(place / "archive", out)
        return out

    def test_good(self, tmp_path: Path) -> None:
        out = self.unpack(
            tmp_path,
            tar_of(
                member("bin", kind=tarfile.DIRTYPE),
                member("bin/tool", b"run"),
                member("deep/er/file", b"x"),
                member("deep/link", kind=tarfile.SYMTYPE, link="../bin/tool"),
                member("n" * 200, b"long"),
            ),
        )
        assert (out / "deep/link").read_bytes() == b"run"
        assert (out / ("n" * 200)).read_bytes() == b"long"
        assert stat.S_IMODE((out / "bin/tool").stat().st_mode) == 0o755

    LINK = tarfile.SYMTYPE

    @pytest.mark.parametrize(
        "members",
        [
            [member("../x", b"x")],
            [member("/x", b"x")],
            [member("a/../../x", b"x")],
            [member("a//x", b"x")],
            [member("./x", b"x")],
            [member("", b"x")],
            [member("x" * 5000, b"x")],
            [member("link", kind=LINK, link="/etc/passwd")],
            [member("link", kind=LINK, link="..")],
            [member("a/link", kind=LINK, link="../../x")],
            [member("link", kind=LINK, link="a/../../x")],
            [member("p", kind=LINK, link="."), member("link", kind=LINK, link="p/../x")],
            [member("link", kind=LINK, link="")],
            [member("sub", kind=tarfile.DIRTYPE), member("link", kind=LINK, link="sub"), member("link/x", b"x")],
            [member("a", b"x"), member("a", b"y")],
            [member("a", kind=LINK, link="b"), member("a", b"y")],
            [member("a", b"x"), member("a/b", b"y")],
            [member("a", b"x"), member("hard", kind=tarfile.LNKTYPE, link="a")],
            [member("fifo", kind=tarfile.FIFOTYPE)],
            [member("null", kind=tarfile.CHRTYPE)],
            [member("disk", kind=tarfile.BLKTYPE)],
        ],
    )
    def test_hostile(self, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        with pytest.raises(Failure):
            self.unpack(tmp_path, tar_of(*members))
        outside = {path for path in tmp_path.rglob("*") if tmp_path / "top/out" not in (path, *path.parents)}
        assert outside == {tmp_path / "archive", tmp_path / "top"}

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tools.bootstrap.unpack.MEMBERS_MAX", 2)
        with pytest.raises(Failure, match="more than a release may"):
            self.unpack(tmp_path, tar_of(*(member(str(number), b"x") for number in range(3))))
        monkeypatch.setattr("tools.bootstrap.unpack.BYTES_MAX", 10)
        other = tmp_path / "2"
        other.mkdir()
        with pytest.raises(Failure, match="more than a release may"):
            self.unpack(other, tar_of(member("a", b"x" * 11)))

    @pytest.mark.parametrize(
        "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
    )
    def test_a_header_that_is_too_long_is_not_read(self, tmp_path: Path, kind: bytes) -> None:
        """tarfile would take all of it into memory, and of a few bytes there may be gigabytes."""
        with pytest.raises(Failure, match="a header that is too long"):
            self.unpack(tmp_path, tar_of(member("long", b"x" * (1 << 20), kind=kind)))

    def test_damaged(self, tmp_path: Path) -> None:
        entropy = random.Random(5)
        good = tar_of(member("a", entropy.randbytes(3000)), member("b/c", entropy.randbytes(3000)))
        for number in range(150):
            data = bytearray(good)
            if number % 2:
                data[entropy.randrange(len(data))] ^= 1 << entropy.randrange(8)
            else:
                del data[entropy.randrange(len(data)) :]
            place = tmp_path / str(number)
            place.mkdir()
            try:
                self.unpack(place, bytes(data))
            except Failure:
                continue
        (tmp_path / "plain").mkdir()
        with pytest.raises(Failure, match="cannot be read"):
            self.unpack(tmp_path / "plain", gzip.compress(b"no tar" * 100))


def test_the_zipapp_is_the_same_each_time_and_stands_alone() -> None:
    data = build_bootstrap()
    assert data == build_bootstrap()
    assert data.startswith(b"#!/usr/bin/env python3\nPK")
    here = Path(__file__).parents[2] / "tools/bootstrap"
    for path in here.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= sys.stdlib_module_names, path.name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert str(node.module).split(".")[0] in sys.stdlib_module_names, path.name


def test_pip_is_found_where_it_lies(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    places = (None, str(tmp_path / "nosuch"), str(wheels))
    assert pip_wheel(places) is None
    for name in ("pip-24.0-py3-none-any.whl", "pip-25.1-py3-none-any.whl", "pipx-99-py3-none-any.whl"):
        (wheels / name).touch()
    assert pip_wheel(places) == wheels / "pip-25.1-py3-none-any.whl"


def test_private_keys_that_are_none(tmp_path: Path) -> None:
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", os.urandom(64)):
        with pytest.raises(BoxlinkError):
            signing.Signer(data)
