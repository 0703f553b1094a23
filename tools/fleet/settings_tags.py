"""What an instance was told by ``--set``, as tags of its own (``boxlink:set:NAME``): whoever puts another in its place
reads them there and need not be told again.

Everybody who may look at instances sees their tags, and user-data and process lists besides: what looks like a secret
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from synclib.errors import Invalid

_PREFIX = "boxlink:set:"
# EC2, "Tag restrictions"; of the 50 tags of an instance some are ours and some the account's.
_COUNT_MAX, _NAME_CHARACTERS_MAX, _VALUE_CHARACTERS_MAX = 24, 100, 256
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SECRET_WORDS = {
    "secret",
    "secrets",
    "password",
    "passwd",
    "passphrase",
    "token",
    "credential",
    "credentials",
    "apikey",
}
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")  # IAM, "Unique identifiers"


def settings_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Invalid for what tags cannot hold, or shall not."""
    if len(values) > _COUNT_MAX:
        raise Invalid(f"an instance can be told {_COUNT_MAX} --set", hint="put the rest into the release's role")
    for name, value in values.items():
        if len(name) > _NAME_CHARACTERS_MAX or len(value) > _VALUE_CHARACTERS_MAX or not value.isprintable():
            raise Invalid(
                f"--set {name[:_NAME_CHARACTERS_MAX]}=… is no value for an instance",
                hint=f"{_VALUE_CHARACTERS_MAX} printable characters at most; longer ones go into the release's role",
            )
        if _SECRET_WORDS & set(name.split("_")) or _ACCESS_KEY.search(value):
            raise Invalid(
                f"--set {name}=… looks like a secret, and everybody would see it: in tags, user-data, process lists",
                hint="give the instance a role by its profile, and let its program fetch what it may have",
            )
    return {f"{_PREFIX}{name}": value for name, value in sorted(values.items())}


def settings_of(tags: Mapping[str, str]) -> dict[str, str]:
    """What an instance's tags say. Invalid for what no launch of ours writes."""
    found = {name.removeprefix(_PREFIX): value for name, value in tags.items() if name.startswith(_PREFIX)}
    for name in found:
        if not _NAME.fullmatch(name):
            raise Invalid(f"the tag {_PREFIX}{name[:80]!r} is no setting", hint="see who may tag instances")
    settings_tags(found)
    return found
