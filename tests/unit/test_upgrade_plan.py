"""What is under way is gone on with by whoever asks for the same; on what machines it runs stands in the journal."""

from __future__ import annotations

import dataclasses

import pytest

from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Rollout, Step, parse_rollout
from synclib.errors import Conflict, Corrupt
from tools.fleet.upgrade_plan import Change, check_same

OLD, NEW = Machine("ami-1", ("c7g.large",), ("subnet-1",)), Machine("ami-2", ("c7g.large", "m7g.large"))
CHANGE = Change.of("fleet@2", None, "", {}, is_swap=False, machine=NEW)
NODE = NodeSpec(node="render-1", role="render", release="fleet@1", machine=OLD)


def begun(change: Change) -> Rollout:
    step = Step(old=NODE, new=change.new_of(NODE).model_copy(update={"node": "render-000001-1"}), batch=0)
    return Rollout(id="render-000001", role="render", steps=[step], at="now")


def test_the_journal_says_on_what_machines() -> None:
    found = parse_rollout(begun(CHANGE).model_dump_json().encode(), "upgrade/render-000001")
    assert (found.steps[0].old.machine, found.steps[0].new.machine) == (OLD, NEW)
    without = Change.of("fleet@2", None, "", {}, is_swap=False)
    assert begun(without).steps[0].new.machine == OLD, "as the old one's"


def test_who_goes_on_need_not_say_it_but_may_not_say_another() -> None:
    rollout = begun(CHANGE)
    check_same(rollout, CHANGE)
    check_same(rollout, dataclasses.replace(CHANGE, machine=None))
    with pytest.raises(Conflict, match="to something else"):
        check_same(rollout, dataclasses.replace(CHANGE, machine=OLD))


def test_another_machine_alone_is_no_reason_to_replace_a_node() -> None:
    assert dataclasses.replace(CHANGE, release="fleet@1").is_so(NODE)
    assert not CHANGE.is_so(NODE)


def test_what_is_no_machine_is_no_journal() -> None:
    data = begun(CHANGE).model_dump_json()
    for bad in ('"image":""', '"image":7', '"image":"a","user":"root"'):
        with pytest.raises(Corrupt):
            parse_rollout(data.replace('"image":"ami-2"', bad).encode(), "upgrade/render-000001")
