"""How the hydration of a mount goes, for people."""

from __future__ import annotations

from typing import Any

from tools.cli_engine import size_text


def hydration_text(figures: dict[str, Any]) -> str:
    """One line from a worker's figures."""
    state, percent = str(figures["hydration"]), figures["hydrated_percent"]
    requests = sum(figures["requests"].values())
    text = f"{size_text(int(figures['hydrated_bytes']))} of {size_text(int(figures['hydrated_total_bytes']))} checked"
    text += f" ({percent} %)" if state != "done" else ": whole"
    if state.startswith("waits"):
        text += f", {state}"
    if figures["hydration_eta_s"] is not None and state != "done":
        text += f", {duration_text(float(figures['hydration_eta_s']))} left"
    if figures["hydration_failed"]:
        text += f", {figures['hydration_failed']} pieces cannot be had"
    return text + f"; {requests:,} requests, ${figures['usd']:.6f}"


def duration_text(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
