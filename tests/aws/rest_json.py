"""EBS direct's rest-json protocol: what is in the path, the query, the headers and the body, by botocore's model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from botocore.model import OperationModel, Shape

from tests.aws.refusal import Refused, invalid
from tests.aws.shapes import Mismatch, check, number, service_model, truth

# What every signed request may carry (AWS general reference, "Signature Version 4").
_HEADERS_OF_ALL = {"x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-user-agent"}


def parse_request(
    method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> tuple[OperationModel, dict[str, Any]]:
    """The operation and its parameters; Refused where the model does not have them."""
    operation, in_path = _route(method, path)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise invalid(str(error)) from error
    try:
        return operation, _params(operation.input_shape, in_path, pairs, headers, body)
    except Mismatch as error:
        raise invalid(str(error), _reason(error)) from error


def _route(method: str, path: str) -> tuple[OperationModel, dict[str, str]]:
    model = service_model("ebs")
    for name in model.operation_names:
        operation = model.operation_model(name)
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(operation.http["requestUri"]))
        found = re.fullmatch(pattern, path)
        # "completion" is a word of the path, never a snapshot's id.
        if found and method == operation.http["method"]:
            return operation, {key: unquote(value) for key, value in found.groupdict().items()}
    raise Refused("UnknownOperationException", f"{method} {path} is no operation", status=404)


def _params(
    shape: Shape,
    in_path: dict[str, str],
    pairs: list[tuple[str, str]],
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, Any]:
    params: dict[str, Any] = {}
    in_query = dict(pairs)
    in_headers = {name.lower(): value for name, value in headers.items()}
    payload = shape.serialization.get("payload")
    known_headers = set(_HEADERS_OF_ALL)
    for key, member in shape.members.items():
        place, name = member.serialization.get("location"), member.serialization.get("name", key)
        if place == "header":
            known_headers.add(name.lower())
        source, name = {
            "uri": (in_path, name),
            "querystring": (in_query, name),
            "header": (in_headers, name.lower()),
        }.get(place or "", ({}, name))
        if name in source:
            params[key] = _scalar(member, source.pop(name), key)
    if in_query:
        raise Mismatch("unknown", next(iter(in_query)), "is not recognized")
    for name in in_headers:
        if name.startswith("x-amz-") and name not in known_headers:
            raise Mismatch("unknown", name, "is not recognized")
    if payload:
        params[payload] = body
    elif body:
        params.update(_document(body))
    check(params, shape)
    return params


def _scalar(shape: Shape, text: str, where: str) -> Any:
    if shape.type_name in ("integer", "long"):
        return number(text, where)
    return truth(text, where) if shape.type_name == "boolean" else text


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise Mismatch("value", "body", str(error)) from error
    if not isinstance(document, dict):
        raise Mismatch("value", "body", "no object")
    return document


def _reason(error: Mismatch) -> str:
    reasons = {
        "BlockToken": "INVALID_BLOCK_TOKEN",
        "NextToken": "INVALID_PAGE_TOKEN",
        "SnapshotId": "INVALID_SNAPSHOT_ID",
        "BlockIndex": "INVALID_BLOCK",
        "VolumeSize": "INVALID_VOLUME_SIZE",
        "Tags": "INVALID_TAG",
    }
    return reasons.get(error.where.partition(".")[0], "INVALID_PARAMETER_VALUE")


def render_answer(operation: OperationModel, answer: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body). A name that the output shape does not have is the stand-in's own mistake."""
    shape = operation.output_shape
    payload = shape.serialization.get("payload")
    headers, document, body = {"Content-Type": "application/json"}, {}, b""
    for key, value in answer.items():
        member = shape.members[key]
        if key == payload:
            body = value
            headers["Content-Type"] = "application/octet-stream"
        elif member.serialization.get("location") == "header":
            headers[member.serialization["name"]] = str(value)
        else:
            document[key] = _json_value(member, value)
    return int(operation.http.get("responseCode", 200)), headers, body if payload else json.dumps(document).encode()


def _json_value(shape: Shape, value: Any) -> Any:
    if shape.type_name == "structure":
        return {key: _json_value(shape.members[key], item) for key, item in value.items()}
    if shape.type_name == "list":
        return [_json_value(shape.member, item) for item in value]
    if isinstance(value, datetime):
        return value.timestamp()
    check(value, shape, shape.name)
    return value


def render_refusal(refused: Refused) -> tuple[int, dict[str, str], bytes]:
    body = {"Message": refused.message} | ({"Reason": refused.reason} if refused.reason else {})
    return (
        refused.status,
        {"Content-Type": "application/json", "x-amzn-ErrorType": refused.code},
        json.dumps(body).encode(),
    )
