"""What is decided of a swap of volumes, and what is read of it from the store."""

from __future__ import annotations

import pytest

from synclib.core.registration import NodeStatus
from synclib.core.rollout import NodeSpec, Phase, Rollout, Start, State, Step, View
from synclib.core.swap import Wish, became_of, decide_swap, parse_wish, stands_on, swaps_wanted
from synclib.errors import Corrupt

OLD, NEW = "snap-0001", "snap-0002"


def rollout(*phases: Phase, state: State = State.RUNNING) -> Rollout:
    steps = []
    for number, phase in enumerate(phases):
        old = NodeSpec(node=f"n{number}", role="render", pins={"covers": 1}, snapshot=OLD)
        new = old.model_copy(update={"pins": {"covers": 2}, "snapshot": NEW})
        steps.append(Step(old=old, new=new, batch=number, phase=phase))
    return Rollout(id="render-000001", role="render", swap="covers", steps=steps, state=state, at="")


def status(**fields: object) -> NodeStatus:
    told = {"swap": "w", "seq": {"covers": 2}, "reason": {"covers": f"from snapshot {NEW}, seq 2"}, "at": ""}
    return NodeStatus.model_validate({**told, **fields})


WISH = Wish(id="w", dataset="covers", seq=2, snapshot=NEW)
READY = View(is_there=True, is_ready=True, why="", downtime_ms=12.5)


def test_one_node_after_the_other() -> None:
    found, asked = rollout(Phase.WAITING, Phase.WAITING), []
    for _ in range(20):
        [*wanted] = swaps_wanted(found)
        assert len(wanted) <= 1, "never two at once"
        is_asked = bool(wanted) and wanted[0].node in asked
        views = {spec.node: READY if is_asked else View(is_there=True, why="not yet") for spec in wanted}
        decision = decide_swap(found, views, 0, 60, "")
        asked += [effect.spec.node for effect in decision.effects if isinstance(effect, Start)]
        found = decision.rollout
        if found.state.is_final:
            break
    assert (found.state, asked) == (State.DONE, ["n0", "n1"])
    assert [step.downtime_ms for step in found.steps] == [12.5, 12.5]


@pytest.mark.parametrize(
    ("view", "waited_s", "alarm"),
    [
        (View(is_there=True, why="corrupt: no", is_refused=True), 0, ""),
        (View(is_there=True, why="late"), 61, ""),
        (READY, 0, "the proxy says no"),
    ],
)
def test_what_takes_it_back(view: View, waited_s: float, alarm: str) -> None:
    decision = decide_swap(rollout(Phase.DONE, Phase.STARTING), {"n1": view}, waited_s, 60, alarm)
    assert decision.rollout.state is State.ROLLING_BACK
    assert (alarm or view.why) in decision.rollout.reason


def test_back_in_the_other_order_and_also_those_that_were_done() -> None:
    found = rollout(Phase.DONE, Phase.STARTING, Phase.WAITING, state=State.ROLLING_BACK)
    found = decide_swap(found, {}, 0, 60, "").rollout
    assert found.steps[2].phase is Phase.UNDONE, "it was never asked"
    asked = []
    while not found.state.is_final:
        spec = swaps_wanted(found)[-1]
        [effect] = decide_swap(found, {spec.node: View(is_there=True)}, 0, 60, "").effects
        assert isinstance(effect, Start)
        asked.append((effect.spec.node, effect.spec.snapshot, effect.spec.pins["covers"]))
        found = decide_swap(found, {spec.node: READY}, 0, 60, "").rollout
        if not swaps_wanted(found):
            found = decide_swap(found, {}, 0, 60, "").rollout
    assert asked == [("n1", OLD, 1), ("n0", OLD, 1)]
    assert found.state is State.ROLLED_BACK


def test_a_node_that_does_not_come_back_is_said() -> None:
    found = rollout(Phase.STARTING, state=State.ROLLING_BACK)
    failed = decide_swap(found, {"n0": View(is_there=True, why="it says nothing")}, 61, 60, "").rollout
    assert failed.state is State.FAILED
    assert "n0 did not come back: it says nothing" in failed.reason
    paused = rollout(Phase.STARTING, state=State.PAUSED)
    assert decide_swap(paused, {}, 61, 60, "").rollout == paused


def test_what_became_of_a_wish() -> None:
    assert became_of(WISH, status()).is_done
    assert became_of(WISH, status(reason={})).is_done, "all of it is here: no volume is needed"
    assert not became_of(WISH, None).is_done
    assert not became_of(WISH, status(swap="an earlier one")).is_done
    assert "seq 1" in became_of(WISH, status(seq={"covers": 1})).why
    assert OLD in became_of(WISH, status(reason={"covers": f"from snapshot {OLD}, seq 1"})).why
    refused = became_of(WISH, status(errors={"covers": "corrupt: it holds something else"}))
    assert (refused.is_done, refused.is_refused) == (False, True)
    assert not became_of(WISH, status(errors={"covers": "unavailable: the store is away"})).is_refused
    assert became_of(WISH.model_copy(update={"seq": 0}), status(seq={"covers": 9})).is_done, "it follows"


def test_what_a_node_stands_on() -> None:
    assert stands_on(status(), "covers") == (NEW, 2)
    assert (
        stands_on(status(reason={"covers": f"from snapshot {NEW}, seq 2; mounted as a FUSE tree: x"}), "covers")[1] == 2
    )
    for reason in ("", "from the store: no", "from snapshot ../x, seq 2", f"from snapshot {NEW}, seq {'9' * 30}"):
        assert stands_on(status(reason={"covers": reason}), "covers") == ("", 0)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "../x"}, {"snapshot": "snap-1 eager"}, {"snapshot": "vol-1"}, {"seq": -1}, {"seq": 10**18},
        {"id": ""}, {"id": "x" * 201}, {"v": 2},
    ],
)  # fmt: skip
def test_a_hostile_wish_is_refused_by_name(change: dict[str, object]) -> None:
    import json

    data = {**json.loads(WISH.model_dump_json()), **change}
    with pytest.raises(Corrupt, match=f"a wish to swap: {next(iter(change))}"):
        parse_wish(json.dumps(data).encode(), "swap/n1")


def test_the_words_of_a_wish() -> None:
    assert parse_wish(WISH.model_dump_json().encode(), "swap/n1") == WISH
    assert WISH.words == f"seq=2 from={NEW}"
    assert Wish(id="w", dataset="covers", seq=0).words == "from=snapshot"
