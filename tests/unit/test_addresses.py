from __future__ import annotations

import pytest

from synclib.errors import Invalid
from tools.addresses import advertised, bind, check_ip, parse_address, show_address


def test_addresses_on_the_command_line() -> None:
    assert parse_address("127.0.0.1:80", "--listen") == ("127.0.0.1", 80)
    assert parse_address(":8080", "--listen") == ("0.0.0.0", 8080)
    assert parse_address("[::1]:8080", "--listen") == ("::1", 8080)
    assert show_address("::1", 80) == "[::1]:80"


@pytest.mark.parametrize("text", ["", "80", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80", "host:٣"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Invalid):
        parse_address(text, "--listen")
    with pytest.raises(Invalid):
        parse_address("127.0.0.1:0", "--advertise", port_min=1)


def test_what_others_reach() -> None:
    assert advertised("10.1.2.3", "s3://bucket", None) == "10.1.2.3"
    assert advertised("0.0.0.0", "file:///srv", None) == "127.0.0.1"
    assert advertised("0.0.0.0", "s3://bucket", "http://127.0.0.1:9000") == "127.0.0.1"
    assert check_ip("::0001", "--advertise") == "::1"
    with pytest.raises(Invalid):
        check_ip("example.org", "--advertise")


def test_a_port_that_is_taken() -> None:
    first = bind("127.0.0.1", 0)
    first.listen()
    with pytest.raises(Invalid):
        bind("127.0.0.1", first.getsockname()[1])
    first.close()
