"""A role as systemd units: one service a process, and a target that starts them all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from synclib.core.role import Process
from synclib.disk.atomic import write_atomic
from synclib.errors import Invalid
from synclib.store.open import directory_of
from tools.fleet.find_role import Place, environment_of
from tools.fleet.programs import BOXLINK, command_of

# Programs that say when they are ready, and that they are alive (tools/notify.py).
_NOTIFYING = {"sync", "render", "proxy"}
# Longer than the longest step between two words of render: a wall of some million covers is loaded in one.
_WATCHDOG_S = 300
# Their processes must live on when sync is started anew: they are what mounted datasets stand on.
_KEEPING = {"sync"}
_KEEPER_DESCRIPTORS = 64
# Where a store of S3 is; none of it is secret.
_WHERE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_PLAIN = re.compile(r"[A-Za-z0-9_./:=@,+%-]+")


def write_units(
    directory: Path, role: str, processes: Sequence[Process], place: Place, store: str, store_found: str
) -> list[Path]:
    """The paths of the units, the target first. ``store``: the URL that they are given; empty for none, and then
    ``store_found`` is what they find in ``boxlink.toml``."""
    target = f"boxlink-{role}.target"
    names = [f"boxlink-{role}-{process.name}.service" for process in processes]
    texts = {target: _target(role, names)}
    # What a role sets may be a secret.
    secret = {name for name, process in zip(names, processes, strict=True) if process.environment}
    for index, process in enumerate(processes):
        texts[names[index]] = _service(role, process, place, store, store_found, target, names[:index])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomic(directory / name, text.encode(), 0o600 if name in secret else 0o644)
    except OSError as error:
        raise Invalid(f"the units cannot be written: {error.strerror}", path=str(directory)) from error
    return [directory / name for name in texts]


def _target(role: str, services: Sequence[str]) -> str:
    return (
        f"[Unit]\nDescription=boxlink {role}\nWants={' '.join(services)}\n"
        "Wants=network-online.target\nAfter=network-online.target\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _service(
    role: str, process: Process, place: Place, store: str, store_found: str, target: str, before: Sequence[str]
) -> str:
    verb = process.run[1] if process.run[0] == BOXLINK and len(process.run) > 1 else ""
    environment = _environment(role, process, place, store)
    command = command_of(process, place, environment)
    lines = [
        "[Unit]",
        f"Description=boxlink {role}: {process.name}",
        f"PartOf={target}",
        # Started in the role's order, hence stopped in the other.
        f"After=network-online.target {' '.join(before)}".rstrip(),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        *_kind(verb),
        # Where one writes them is where boxlink.toml and relative paths are looked for.
        f"WorkingDirectory={_escaped(os.getcwd())}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()),
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in command)}",
        "Restart=always",
        "RestartSec=1",
        f"TimeoutStopSec={process.stop_s:g}",
        *_hardening(verb, place, _store_of(process, environment) or store_found),
        "",
        "[Install]",
        f"WantedBy={target}",
        "",
    ]
    return "\n".join(lines)


def _kind(verb: str) -> list[str]:
    if verb not in _NOTIFYING:
        return ["Type=exec", "KillMode=mixed"]
    # It may wait long for what it serves.
    lines = ["Type=notify", "TimeoutStartSec=infinity", f"WatchdogSec={_WATCHDOG_S}"]
    if verb in _KEEPING:
        # It is the keepers themselves that hand their connections over.
        return [*lines, "NotifyAccess=all", "KillMode=process", f"FileDescriptorStoreMax={_KEEPER_DESCRIPTORS}"]
    return [*lines, "NotifyAccess=main", "KillMode=mixed"]


def _environment(role: str, process: Process, place: Place, store: str) -> dict[str, str]:
    """What the role says, and where the store is; not all that the shell of whoever writes the units happens to hold:
    there are secrets in it."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    found = {"BOXLINK_ROLE": role, "XDG_STATE_HOME": "/var/lib", "XDG_CACHE_HOME": "/var/cache", "PATH": path}
    if store:
        found["BOXLINK_STORE"] = store
        found |= {name: os.environ[name] for name in _WHERE if store.startswith("s3://") and os.environ.get(name)}
    return environment_of(place, found, process)


def _store_of(process: Process, environment: Mapping[str, str]) -> str:
    """The URL of the store that a process is told to use; empty where it is told none."""
    for index, word in enumerate(process.run):
        if word.startswith("--store="):
            return word.removeprefix("--store=")
        if word == "--store" and index + 1 < len(process.run):
            return process.run[index + 1]
    return environment.get("BOXLINK_STORE", "")


def _hardening(verb: str, place: Place, store: str) -> list[str]:
    common = ["NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes", "UMask=0022"]
    if verb in _KEEPING:
        # It mounts, for everybody to see, and sets what modes a dataset has.
        return common
    directory = directory_of(store)
    store_paths = [] if directory is None else [directory]
    return [
        *common,
        "RestrictSUIDSGID=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths={_quoted(str(place.data))}",
        # A store on this machine may be made later.
        *(f"ReadWritePaths={_quoted(f'-{path}')}" for path in store_paths),
        "StateDirectory=boxlink",
        "CacheDirectory=boxlink",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        "SystemCallArchitectures=native",
    ]


def _quoted(word: str) -> str:
    """A word as systemd's settings take it (systemd.syntax(7), QUOTING; systemd.unit(5), SPECIFIERS)."""
    if any(ord(character) < 32 for character in word):
        raise Invalid(f"{word!r} cannot stand in a unit", hint="take the control characters out of the role")
    plain = _escaped(word)
    if _PLAIN.fullmatch(plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
