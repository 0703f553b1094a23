"""What ``boxlink upgrade`` says of a rollout: what is planned of each node, where it stands, how it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from synclib.core.rollout import NodeSpec, Phase, Rollout, Step
from tools.cli_context import shown_in_line


def would_text(rollout: Rollout, would: str) -> str:
    """Of a dry run. ``would``: what would happen to it, such as "would be begun"."""
    lines = [f"a dry run, nothing is changed: {rollout.id} {would}, {_count(rollout)}"]
    return "\n".join([*lines, *(shown_in_line(_would_of_step(step)) for step in rollout.steps)])


def standing_text(rollout: Rollout) -> str:
    lines = [f"{rollout.id}: {rollout.state}{', ' + rollout.reason if rollout.reason else ''}"]
    for step in rollout.steps:
        where = f"{step.old.snapshot} -> {step.new.snapshot}" if rollout.swap else f"-> {step.new.node}"
        seen = "" if step.downtime_ms is None else f"  {step.downtime_ms:.0f} ms without an answer at most"
        lines.append(shown_in_line(f"  batch {step.batch}: {step.old.node} {where}  {step.phase}{seen}"))
    return "\n".join(lines)


def paused_text(rollout: Rollout, place: Sequence[str]) -> str:
    """How far it is, and what goes on. ``place``: options that say where its nodes are."""
    done = sum(step.phase is Phase.DONE for step in rollout.steps)
    left = [step.old.node for step in rollout.steps if step.phase is Phase.WAITING]
    amid = [
        f"{step.old.node} ({step.phase})" for step in rollout.steps if step.phase in (Phase.STARTING, Phase.DRAINING)
    ]
    lines = [f"{done} of {len(rollout.steps)} nodes are done{_listed('at work', amid)}{_listed('not begun', left)}"]
    lines.append(f"  the same command again goes on: {command_of(rollout, place)}")
    back = ["boxlink", "upgrade", rollout.role, *place, "--abort"]
    lines.append(f"  all is taken back with: {shlex.join(back)}")
    return "\n".join(map(shown_in_line, lines))


def command_of(rollout: Rollout, place: Sequence[str]) -> str:
    """The command line that goes on with a rollout, as far as its journal tells: its release by seq, for the current
    one may be another meanwhile."""
    words = ["boxlink", "upgrade", rollout.role, *place]
    steps = rollout.steps
    words += _option("--release", {step.new.release for step in steps if step.new.release != step.old.release})
    snapshots = {step.new.snapshot for step in steps} - {""}
    if snapshots:
        words += [*_option("--snapshot", snapshots), *(["--swap"] if rollout.swap else [])]
    else:
        words += _option("--seq", {f"{name}={seq}" for step in steps for name, seq in _changed(step, "pins")})
    values = {f"{name}={value}" for step in steps for name, value in _changed(step, "values")}
    return shlex.join([*words, *_option("--set", values)])


def launch_command(spec: NodeSpec, place: Sequence[str]) -> str:
    """The command line that starts a node as it was."""
    words = ["boxlink", "launch", spec.role, *place, "--node", spec.node]
    words += ["--release", spec.release] if spec.release else []
    words += _option("--seq", {f"{name}={seq}" for name, seq in spec.pins.items()})
    return shlex.join([*words, *_option("--set", {f"{name}={value}" for name, value in spec.values.items()})])


def _option(name: str, values: set[str]) -> list[str]:
    return [word for value in sorted(values) for word in (name, value)]


def _changed(step: Step, what: str) -> Iterator[tuple[str, object]]:
    old, new = getattr(step.old, what), getattr(step.new, what)
    return ((name, value) for name, value in new.items() if old.get(name) != value)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"; {what}: {', '.join(names)}" if names else ""


def _count(rollout: Rollout) -> str:
    nodes, batches = len(rollout.steps), rollout.steps[-1].batch + 1
    return f"{nodes} {'node' if nodes == 1 else 'nodes'} in {batches} {'batch' if batches == 1 else 'batches'}"


def _would_of_step(step: Step) -> str:
    canary = ", the canary" if not step.batch else ""
    if step.phase is not Phase.WAITING:
        return f"  batch {step.batch}{canary}: {step.old.node} is {step.phase}: {_changes(step)}"
    if step.old.node == step.new.node:
        return f"  batch {step.batch}{canary}: {step.old.node} would change: {_changes(step)}"
    return f"  batch {step.batch}{canary}: {step.new.node} would take the place of {step.old.node}: {_changes(step)}"


def _changes(step: Step) -> str:
    """From what to what, of all that changes."""
    old, new = step.old, step.new
    found = []
    if old.release != new.release:
        found.append(f"release {old.release or 'none'} -> {new.release or 'none'}")
    found += [f"{name} {_seq_of(old, name)} -> seq {seq}" for name, seq in _changed(step, "pins")]
    if old.snapshot != new.snapshot:
        found.append(f"snapshot {old.snapshot or 'none'} -> {new.snapshot or 'none'}")
    # A value that was not set is the role's own.
    found += [
        f"{name} {old.values.get(name, '(as in the role)')} -> {value}" for name, value in _changed(step, "values")
    ]
    return ", ".join(found)


def _seq_of(spec: NodeSpec, dataset: str) -> str:
    return f"seq {spec.pins[dataset]}" if dataset in spec.pins else "its head"
