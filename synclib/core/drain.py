"""How long whoever is told to end may take: one rule for servers, roles, units and upgrades.

DRAIN_S   requests that run when a server is told to end may go on for so long; what runs longer is cut
END_S     for all else: saying so in the store before and after, closing
STOP_S    of one process, from SIGTERM to SIGKILL: a role's stop_s, unless it says another
"""

from __future__ import annotations

DRAIN_S = 30.0
END_S = 15.0
STOP_S = DRAIN_S + END_S
