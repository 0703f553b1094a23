"""``node.json``: what is known of a node that runs on this machine."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synclib.core.role import Name
from synclib.disk.atomic import write_atomic
from synclib.errors import Corrupt, Invalid
from tools.fleet.process_id import ProcessId

FILE = "node.json"
_BYTES_MAX = 64 << 10


class LocalNode(BaseModel):
    """``release``: ``NAME@SEQ``, empty for none, and ``release_directory`` where it stands. ``pid`` and ``start_time``
    (proc(5), /proc/pid/stat): of its ``boxlink up``, 0 where it was not seen yet. ``ports``: what was chosen for the
    role's addresses, by the value's name; ``values`` what the user set."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node: str = Field(max_length=128)
    role: Name
    role_file: str = ""  # of a role that is a file; else it goes by its name
    release: str = Field(default="", max_length=192)
    release_directory: str = ""
    values: dict[str, str] = {}
    trust: list[str] = []  # files of the keys that its releases may be signed by, beside this machine's
    store: str = ""  # whose node it is; empty where that was not noted
    ports: dict[str, int] = {}
    pid: int = Field(default=0, ge=0)
    start_time: int = Field(default=0, ge=0)
    at: str
    directory: Path = Field(default=Path(), exclude=True)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def addresses(self) -> dict[str, str]:
        """By the value's name, what was chosen for the role's addresses."""
        return {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.start_time)


def read_node(directory: Path) -> LocalNode | None:
    """The node in ``directory``; None where there is none."""
    path = directory / FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if len(data) > _BYTES_MAX:
            raise ValueError("it is too long")
        return LocalNode.model_validate_json(data).model_copy(update={"directory": directory})
    except (ValidationError, ValueError) as error:
        first = f"{error.errors()[0]['msg']}" if isinstance(error, ValidationError) else str(error)
        raise Corrupt(
            f"this is no node's file: {first}",
            path=str(path),
            hint="see whether its boxlink up still runs, end it, then move the directory away",
        ) from error


def write_node(node: LocalNode) -> None:
    """Invalid where it would be too long to be read again."""
    data = node.model_dump_json(indent=1).encode() + b"\n"
    if len(data) > _BYTES_MAX:
        raise Invalid(f"{len(data)} bytes are too much to note of node {node.node}", hint="shorter values of --set")
    write_atomic(node.directory / FILE, data)
