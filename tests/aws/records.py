"""What all the stand-in's resources share: ids, tags, tokens, filters and pages of EC2."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.aws.refusal import Refused

ACCOUNT_ID = "123456789012"
REGION = "eu-central-1"
_FILTER_VALUES_MAX = 200
_PAGE_MAX = 1000
_ID = re.compile(r"(vol|snap|i|ami|subnet|sg|r)-[0-9a-f]{8,17}")


class Ids:
    """Ids that are never given twice, the same in every run. ``first``: for runs that share a machine's devices."""

    def __init__(self, first: int = 0) -> None:
        self._count = first

    def new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count:017x}"


class Tokens:
    """Client tokens: the same token with the same request is the same answer, with another it is refused.

    A token is bound as soon as its request is well formed, so that a try that failed for want of capacity holds it
    too: with other parameters it is another request (EC2, "Ensuring idempotency").
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, str]] = {}

    def begin(self, operation: str, token: str, request: Mapping[str, Any], mismatch: Refused) -> str:
        """The id of what this request made before, or nothing."""
        if not token:
            return ""
        body = repr(sorted((key, value) for key, value in request.items() if key not in ("ClientToken", "DryRun")))
        known_body, resource_id = self._known.setdefault((operation, token), (body, ""))
        if known_body != body:
            raise mismatch
        return resource_id

    def end(self, operation: str, token: str, resource_id: str) -> None:
        if token:
            self._known[operation, token] = (self._known[operation, token][0], resource_id)


def check_id(resource_id: str, kind: str, word: str) -> None:
    if not _ID.fullmatch(resource_id) or not resource_id.startswith(f"{kind}-"):
        raise Refused(f"Invalid{word}.Malformed", f'Invalid id: "{resource_id}" (expecting "{kind}-...")')


def moment(wall_ns: int) -> datetime:
    return datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC)


def tags_from(listed: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Tags of a request within EC2's bounds ("Tag restrictions"); ValueError says which does not hold."""
    tags: dict[str, str] = {}
    for tag in listed:
        key, value = tag.get("Key", ""), tag.get("Value", "")
        if not key or len(key) > 128 or len(value) > 256 or key.lower().startswith("aws:") or key in tags:
            raise ValueError(f"the tag {key!r} is not allowed")
        tags[key] = value
    if len(tags) > 50:
        raise ValueError("more than 50 tags")
    return tags


def tags_at_birth(params: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, dict[str, str]]:
    """Tags by resource type of a TagSpecification."""
    found: dict[str, dict[str, str]] = {}
    for specification in params.get("TagSpecifications", []):
        kind = specification.get("ResourceType", "")
        if kind not in allowed or kind in found or not specification.get("Tags"):
            raise Refused(
                "InvalidParameterValue", f"'{kind}' is not a valid taggable resource type for this operation."
            )
        try:
            found[kind] = tags_from(specification["Tags"])
        except ValueError as error:
            raise Refused("InvalidParameterValue", str(error)) from error
    return found


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


Field = Callable[[Any], Sequence[str]]


def matching(
    records: Sequence[Any],
    params: Mapping[str, Any],
    fields: Mapping[str, Field],
    tags_of: Callable[[Any], dict[str, str]],
) -> list[Any]:
    """Those that pass all filters of a Describe; a filter that is not known is refused."""
    kept = list(records)
    for item in params.get("Filters", []):
        name, values = item.get("Name", ""), item.get("Values", [])
        if len(values) > _FILTER_VALUES_MAX:
            raise Refused("FilterLimitExceeded", f"The maximum number of filter values is {_FILTER_VALUES_MAX}")
        if not values:
            raise Refused("InvalidParameterValue", f"The filter {name} has no values")
        if name.startswith("tag:"):
            key = name.removeprefix("tag:")
            kept = [record for record in kept if key in tags_of(record) and _any_like([tags_of(record)[key]], values)]
        elif name == "tag-key":
            kept = [record for record in kept if _any_like(list(tags_of(record)), values)]
        elif name in fields:
            kept = [record for record in kept if _any_like(fields[name](record), values)]
        else:
            raise Refused("InvalidParameterValue", f"The filter '{name}' is invalid")
    return kept


def _any_like(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(_like(text, pattern) for text in found for pattern in wanted)


def _like(text: str, pattern: str) -> bool:
    """EC2's wildcards are ``*`` and ``?``; after a backslash they are themselves."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    words = [{"*": ".*", "?": "."}.get(part) or re.escape(part[-1]) for part in parts]
    return re.fullmatch("".join(words), text, re.DOTALL) is not None


def page(records: Sequence[Any], params: Mapping[str, Any], has_ids: bool, page_size: int) -> tuple[list[Any], str]:
    """A page of a Describe and the token of the next; pages are shorter than asked for, as EC2's may be."""
    asked = params.get("MaxResults")
    if asked is not None and (has_ids or not 5 <= asked <= _PAGE_MAX):
        raise Refused(
            "InvalidParameterCombination" if has_ids else "InvalidParameterValue", "MaxResults is not allowed"
        )
    start = 0
    if token := params.get("NextToken"):
        try:
            start = int(base64.b64decode(token, validate=True))
        except ValueError as error:
            raise Refused("InvalidNextToken", "The token is not valid") from error
    stop = start + (min(asked, page_size) if asked else _PAGE_MAX)
    more = base64.b64encode(str(stop).encode()).decode() if stop < len(records) else ""
    return list(records[start:stop]), more
