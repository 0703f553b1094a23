"""Whether a local node that is up is the one that is asked for."""

from pathlib import Path

import pytest

from synclib.errors import Conflict
from tools.fleet.node_file import LocalNode
from tools.fleet.same_node import check_same


def node(ports: dict[str, int], **values: str) -> LocalNode:
    return LocalNode(node="n1", role="render", ports=ports, values=values, at="", directory=Path("/nodes/n1"))


def test_an_address_that_the_role_has_gained_or_lost_is_no_difference() -> None:
    check_same(node({"listen": 4001}), node({"listen": 4001, "admin": 4002}), {"listen": "", "admin": ""})
    check_same(node({"listen": 4001, "admin": 4002}), node({"listen": 4001}), {"listen": ""})


def test_what_the_role_has_is_no_difference_and_another_value_is_named() -> None:
    check_same(node({}), node({}, dataset="covers"), {"dataset": "covers"})
    with pytest.raises(Conflict, match="is up with dataset=covers, not dataset=maps") as found:
        check_same(node({}), node({}, dataset="maps"), {"dataset": "covers"})
    assert found.value.hint == "boxlink upgrade render --local /nodes --set dataset=maps rolls all to it"
