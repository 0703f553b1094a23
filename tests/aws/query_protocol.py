"""EC2's query protocol: a form comes in, XML goes out (AWS query protocol for EC2, as botocore's model words it)."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.model import OperationModel, Shape

from tests.aws.refusal import Refused
from tests.aws.shapes import Mismatch, check, number, service_model, truth

_VERSION = service_model("ec2").api_version
_CODES = {"unknown": "UnknownParameter", "missing": "MissingParameter", "value": "InvalidParameterValue"}


def parse_request(body: bytes) -> tuple[OperationModel, dict[str, Any]]:
    """The operation and its parameters; Refused where the model does not have them."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise Refused("MalformedQueryString", str(error)) from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refused("InvalidParameterCombination", "a parameter comes twice")
    action, version = fields.pop("Action", ""), fields.pop("Version", "")
    if version != _VERSION or action not in service_model("ec2").operation_names:
        raise Refused("InvalidAction", f"The action {action} is not valid for this web service ({version}).")
    operation = service_model("ec2").operation_model(action)
    try:
        params = _parse(operation.input_shape, fields, "")
        check(params, operation.input_shape)
    except Mismatch as error:
        raise Refused(_CODES[error.kind], f"The parameter {error}") from error
    return operation, params


def _parse(shape: Shape, fields: dict[str, str], where: str) -> Any:
    if shape.type_name == "structure":
        names = {_query_name(member, key): key for key, member in shape.members.items()}
        found = {}
        for name, inner in _grouped(fields).items():
            inside = f"{where}.{name}" if where else name
            if name not in names:
                raise Mismatch("unknown", inside, "is not recognized")
            found[names[name]] = _parse(shape.members[names[name]], inner, inside)
        return found
    if shape.type_name == "list":
        groups = {number(index, where): inner for index, inner in _grouped(fields).items()}
        if sorted(groups) != list(range(1, len(groups) + 1)):
            raise Mismatch("value", where, "a list is numbered from 1 without gaps")
        return [_parse(shape.member, groups[index], f"{where}.{index}") for index in sorted(groups)]
    if set(fields) != {""}:
        raise Mismatch("unknown", where, f"is a {shape.type_name}, it has no parts")
    text = fields[""]
    if shape.type_name in ("integer", "long"):
        return number(text, where)
    return truth(text, where) if shape.type_name == "boolean" else text


def _grouped(fields: dict[str, str]) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for field, value in fields.items():
        head, _, rest = field.partition(".")
        groups.setdefault(head, {})[rest] = value
    return groups


def _query_name(member: Shape, key: str) -> str:
    name = member.serialization.get("queryName")
    if name:
        return name
    name = member.serialization.get("name", key)
    return name[0].upper() + name[1:]


def render_answer(operation: OperationModel, answer: dict[str, Any], request_id: str) -> bytes:
    inner = _members(operation.output_shape, answer) if operation.output_shape else "<return>true</return>"
    name = f"{operation.name}Response"
    namespace = service_model("ec2").metadata["xmlNamespace"]
    return f'<{name} xmlns="{namespace}"><requestId>{request_id}</requestId>{inner}</{name}>'.encode()


def render_refusal(refused: Refused, request_id: str) -> bytes:
    error = f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message></Error>"
    return f"<Response><Errors>{error}</Errors><RequestID>{request_id}</RequestID></Response>".encode()


def _members(shape: Shape, value: dict[str, Any]) -> str:
    """The elements of a structure. A name that the output shape does not have is the stand-in's own mistake."""
    parts = []
    for key, item in value.items():
        member = shape.members[key]
        name = member.serialization.get("name", key)
        parts.append(f"<{name}>{_text(member, item)}</{name}>")
    return "".join(parts)


def _text(shape: Shape, value: Any) -> str:
    if shape.type_name == "structure":
        return _members(shape, value)
    if shape.type_name == "list":
        name = shape.member.serialization.get("name", "item")
        return "".join(f"<{name}>{_text(shape.member, item)}</{name}>" for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    check(value, shape, shape.name)
    return escape(str(value))
