"""Where a role comes from, and what it is once every value is known."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synclib.core.role import BUILT_IN_VALUES, ROLE_BYTES_MAX, Process, Role, parse_role
from synclib.disk.regular import open_regular
from synclib.errors import Invalid, Missing

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
ADDRESS = re.compile(r"[^\s/]+:[0-9]{1,5}")
_VALUE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_SHIPPED = Path(__file__).parent / "roles"


@dataclass(frozen=True)
class Place:
    """Where a role runs. ``release``: the directory of the release that runs, if one does."""

    data: Path
    node: str
    release: Path | None = None

    def values(self, role: str) -> dict[str, str]:
        release = "" if self.release is None else str(self.release)
        return dict(zip(BUILT_IN_VALUES, (str(self.data), self.node, role, release), strict=True))


def check_roles(release: Path) -> None:
    """Invalid for a role of a release's directory that is none."""
    for path in sorted((release / "roles").glob("*.toml")):
        with contextlib.suppress(FileNotFoundError), open(open_regular(path), "rb") as file:
            parse_role(file.read(ROLE_BYTES_MAX + 1), str(path))


def find_role(name: str, release: Path | None) -> Role:
    """``name``: a TOML file, or what is found in ``./roles``, in the release's ``roles`` or among our own.

    Invalid for a file that is no role, Missing where there is none.
    """
    for path in _candidates(name, release):
        try:
            with path.open("rb") as file:
                return parse_role(file.read(ROLE_BYTES_MAX + 1), str(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise Invalid(f"the role cannot be read: {error.strerror}", path=str(path)) from error
    known = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.toml")))
    where = f"name a TOML file, one in ./roles, or one of: {known}; one that a release brings needs --release"
    raise Missing(f"there is no role {name}", hint=where)


def shipped_role(name: str) -> Role | None:
    """One that boxlink itself brings; None where it has none of that name."""
    path = _SHIPPED / f"{name}.toml"
    return parse_role(path.read_bytes(), str(path)) if _NAME.fullmatch(name) and path.exists() else None


def role_file(name: str, release: Path | None) -> Path | None:
    """The file of a role that is one, or is found in ``./roles``; None for one that a release or boxlink brings, which
    is found again by its name wherever it is run."""
    path = _candidates(name, release)[0]
    return path if path.exists() else None


def _candidates(name: str, release: Path | None) -> list[Path]:
    if name.endswith(".toml") or "/" in name:
        return [Path(name)]
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is no role", hint="name a TOML file, or use small letters, digits and '-'")
    releases = [] if release is None else [release / "roles"]
    return [directory / f"{name}.toml" for directory in (Path("roles"), *releases, _SHIPPED)]


def parse_values(words: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words of ``--set``."""
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
            raise Invalid(f"--set {word!r} sets nothing", hint="write --set listen=0.0.0.0:8000")
        if name in BUILT_IN_VALUES:
            raise Invalid(f"--set {name}=… is no value of a role: it always stands for the same", hint=f"see --{name}")
        if not is_text(value):
            raise Invalid(f"--set {name}=… is no text: it is not UTF-8", hint="write it in UTF-8")
        values[name] = value
    return values


def is_text(value: str) -> bool:
    """Whether it can be written anywhere: a byte of the command line that is no UTF-8 stands as a half of a pair."""
    try:
        return bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


def processes_of(role: Role, place: Place, values: Mapping[str, str]) -> list[Process]:
    """The role's processes with nothing left to fill in. Invalid for a value that the role does not use: a slip of
    the pen would otherwise start it with another's."""
    texts = [text for process in role.process for text in (*process.run, *process.environment.values())]
    used = {name for text in texts for name in _VALUE.findall(text)} | set(role.values)
    for name in values:
        if name not in used:
            raise Invalid(
                f"role {role.role} has no value {name!r}", hint=f"it has: {', '.join(sorted(role.values)) or 'none'}"
            )
    return role.with_values({**values, **place.values(role.role)})


def check_values(role: Role, place: Place, values: Mapping[str, str]) -> None:
    """Invalid for values with which a role cannot run: one that it does not have, one that it lacks, an address that is
    none."""
    processes_of(role, place, values)
    for name, value in values.items():
        if ADDRESS.fullmatch(role.values.get(name, "")) and not ADDRESS.fullmatch(value):
            raise Invalid(f"value {name!r} of role {role.role} is an address, not {value!r}", hint=f"{name}=HOST:PORT")


def environment_of(place: Place, environ: Mapping[str, str], process: Process) -> dict[str, str]:
    """What a process of a role finds in its environment: ours, the node's name, the release's programs first, and which
    release that is, for what the node says of itself."""
    found = {**environ, "BOXLINK_NODE": place.node}
    if place.release is not None:
        # DIR/NAME/SEQ, as fetched (tools/fleet/release_place.py).
        found.setdefault("BOXLINK_RELEASE", f"{place.release.parent.name}@{place.release.name}")
        found["PATH"] = f"{place.release / 'venv/bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {**found, **process.environment}
