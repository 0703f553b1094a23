"""``python -m tests.sim``: many seeds with progress, or one again."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time

from tests.sim.faults import Aim, Fault, parse_faults
from tests.sim.world import COUNTS, FLEET, SCALES, Outcome, Plan, report, simulate


def main() -> int:
    options = _parser().parse_args()
    started = time.monotonic()
    done = 0
    seeds = 10**9 if options.time else options.seeds
    for seed in range(options.seed, options.seed + seeds):
        if options.time and time.monotonic() - started > options.time:
            break
        faults = None if options.faults is None else parse_faults(options.faults)
        counts = {name: getattr(options, name) for name in COUNTS}
        scale = next((scale for scale, name in SCALES.items() if name == options.scale), None)
        aim = None if options.aim is None else Aim(*options.aim.split(","))
        chosen = {"upkeep": options.upkeep, "intents": options.intents, "scale": scale, "aim": aim}
        plan = Plan(seed, options.steps, faults, **counts, **chosen)
        outcome = simulate(plan)
        done += 1
        if options.trace:
            for event in outcome.trace:
                print(*event)
        print(_line(plan, outcome), flush=True)
        if outcome.violation is not None:
            print(report(plan, outcome), file=sys.stderr)
            return 1
    print(f"{done} seeds, {time.monotonic() - started:.1f} s, nothing found")
    return 0


def _line(plan: Plan, outcome: Outcome) -> str:
    faults = " ".join(f"{name}:{count}" for name, count in sorted(outcome.faults.items()))
    digest = hashlib.sha256(repr(outcome.trace).encode()).hexdigest()[:16]
    did = f"{len(outcome.trace)} events, {outcome.seqs} seqs, {outcome.copied_blocks} blocks"
    return f"seed {plan.seed}: {did}, trace {digest} {faults}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--time", type=float, default=0.0, help="go on for so many seconds instead")
    parser.add_argument("--steps", type=int, default=FLEET.steps, help="what the actors do, all together")
    kinds = ",".join(kind.value for kind in Fault)
    parser.add_argument("--faults", help=f"all, none, or some of {kinds}; left out, the seed chooses")
    for name in COUNTS:
        parser.add_argument(f"--{name}", type=int, default=getattr(FLEET, name))
    parser.add_argument("--upkeep", default="", help="what keepers do: compact,drop,…; left out, the seed chooses")
    parser.add_argument(
        "--scale", choices=sorted(SCALES.values()), help="of blocks and packs; left out, the seed chooses"
    )
    parser.add_argument("--aim", metavar="ACTOR,VERB,KEY", help="faults only where these are")
    parser.add_argument("--intents", default="", choices=["", "early", "late"], help="when publishers take theirs")
    parser.add_argument("--trace", action="store_true", help="print every event")
    return parser


if __name__ == "__main__":
    sys.exit(main())
