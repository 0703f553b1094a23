"""What names a wall: a digest of all that its tiles show, so that a tile's address never means two pictures."""

from __future__ import annotations

from blake3 import blake3

# Rises with every change of layout, drawing or encoding that can be seen; tests/golden/wall-v*.jpg belong to it.
RENDERER_VERSION = 1
NAMES_BLOCK = 64  # covers whose names come in one answer
_CONTEXT = "boxlink 2026-11 wall of covers"


def wall_id(seq_digest: str, renderer_version: int = RENDERER_VERSION) -> str:
    """32 hexadecimal digits that name the wall of a seq with this digest (64 digits), drawn by this renderer."""
    shown = f"{seq_digest} {renderer_version}".encode()
    return blake3(shown, derive_key_context=_CONTEXT).hexdigest(16)
