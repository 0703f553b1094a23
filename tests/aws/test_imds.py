"""The metadata service gives nothing without a token, and an instance's program finds there what it needs."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws.clock import DrivenClock
from tests.aws.imds import Metadata, metadata_service, place_of
from tests.aws.machines import Machines, machines
from tests.aws.requests import run
from tests.aws.standin import Standin

USER_DATA = b'store = "s3://covers"\n'
VALUES = place_of("i-00000000000000001", "c7g.large", "eu-central-1a", "10.11.23.4", "ami-00000000000000001")
TOKEN, TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """(status, body)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def clock() -> DrivenClock:
    return DrivenClock()


def service(clock: DrivenClock, **options: str) -> Any:
    return metadata_service(Metadata(clock, options, USER_DATA, VALUES, ("boxlink-node", lambda: ("A", "S", "T"))))


@pytest.fixture
def endpoint(clock: DrivenClock) -> Iterator[str]:
    with service(clock, HttpTokens="required") as endpoint:
        yield endpoint


def token(endpoint: str, seconds: str = "60") -> dict[str, str]:
    status, text = ask(f"{endpoint}/latest/api/token", "PUT", **{TTL: seconds})
    assert status == 200
    return {TOKEN: text}


def test_nothing_without_a_token(endpoint: str) -> None:
    for path in ("user-data", "meta-data/instance-id", "meta-data/iam/security-credentials/"):
        assert ask(f"{endpoint}/latest/{path}") == (401, "")
        assert ask(f"{endpoint}/latest/{path}", **{TOKEN: "made up"}) == (401, "")


def test_with_a_token(endpoint: str) -> None:
    given = token(endpoint)
    assert ask(f"{endpoint}/latest/user-data", **given) == (200, USER_DATA.decode())
    assert ask(f"{endpoint}/latest/meta-data/placement/region", **given) == (200, "eu-central-1")
    assert ask(f"{endpoint}/latest/meta-data/iam/security-credentials/", **given) == (200, "boxlink-node")
    assert ask(f"{endpoint}/latest/meta-data/iam/security-credentials/other", **given) == (404, "")
    assert ask(f"{endpoint}/latest/user-data/..", **given)[0] == 404


def test_token_ends(endpoint: str, clock: DrivenClock) -> None:
    given = token(endpoint)
    clock.advance(59)
    assert ask(f"{endpoint}/latest/user-data", **given)[0] == 200
    clock.advance(1)
    assert ask(f"{endpoint}/latest/user-data", **given)[0] == 401


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "soon"])
def test_token_needs_its_seconds(endpoint: str, seconds: str) -> None:
    headers = {TTL: seconds} if seconds else {}
    assert ask(f"{endpoint}/latest/api/token", "PUT", **headers) == (400, "")


def test_no_token_through_a_proxy_or_by_get(endpoint: str) -> None:
    assert ask(f"{endpoint}/latest/api/token", "PUT", **{TTL: "60", "X-Forwarded-For": "10.0.0.9"}) == (403, "")
    assert ask(f"{endpoint}/latest/api/token", **{TTL: "60"}) == (405, "")


def test_version_1_only_where_it_is_allowed(clock: DrivenClock) -> None:
    with service(clock, HttpTokens="optional") as endpoint:
        assert ask(f"{endpoint}/latest/user-data") == (200, USER_DATA.decode())
        assert ask(f"{endpoint}/latest/user-data", **{TOKEN: "made up"}) == (401, "")
    with service(clock, HttpEndpoint="disabled") as endpoint:
        assert ask(f"{endpoint}/latest/api/token", "PUT", **{TTL: "60"}) == (403, "")


PROGRAM = """
import os, signal, sys, urllib.request
base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
put = urllib.request.Request(base + "api/token", method="PUT", headers=ttl)
header = {"X-aws-ec2-metadata-token": urllib.request.urlopen(put).read().decode()}
def get(path):
    return urllib.request.urlopen(urllib.request.Request(base + path, headers=header)).read().decode()
def end(*_):
    open("ended", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
import boto3
ec2 = boto3.client("ec2", region_name=get("meta-data/placement/region"))
seen = [volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]]
try:
    ec2.describe_instances()
except Exception as error:
    seen.append(error.response["Error"]["Code"])
with open("told.partial", "w") as file:
    file.write("\\n".join([get("meta-data/instance-id"), get("user-data").strip(), *seen]))
os.rename("told.partial", "told")
signal.pause()
"""


@pytest.fixture
def started(standin: Standin, tmp_path: Path) -> Iterator[Machines]:
    environ = {"AWS_ENDPOINT_URL_EC2": standin.endpoint}
    with machines(standin, tmp_path, lambda _: [sys.executable, "-c", PROGRAM], environ) as found:
        yield found


def test_instance_really_runs_with_its_own_keys(standin: Standin, ec2: Any, started: Machines) -> None:
    volume_id = ec2.create_volume(AvailabilityZone="eu-central-1a", Size=1)["VolumeId"]
    options = {"HttpTokens": "required", "HttpEndpoint": "enabled"}
    profile = {"Name": "boxlink-node"}
    instance_id = run(ec2, UserData="one", MetadataOptions=options, IamInstanceProfile=profile)
    with standin.locked():
        assert started.running == {}
    standin.clock.advance(standin.delays.run_s)
    with standin.locked():
        machine = started.running[instance_id]
    told = machine.directory / "told"
    while not told.exists():
        assert machine.process.poll() is None, machine.console.read_text()
        ec2.describe_volumes()
    assert told.read_text().split("\n") == [instance_id, "one", volume_id, "UnauthorizedOperation"]
    ec2.terminate_instances(InstanceIds=[instance_id])
    started.wait_until_ended(instance_id)
    assert machine.process.returncode == 0
    assert (machine.directory / "ended").exists()
    with pytest.raises(urllib.error.URLError):
        ask(machine.metadata_endpoint)


def test_session_token_belongs_to_its_keys(standin: Standin) -> None:
    import boto3
    from botocore.exceptions import ClientError

    role = standin.role_of("boxlink-node")
    assert role is not None
    access_key, secret_key, session_token = role[1]()
    for token_given, is_right in ((session_token, True), ("another", False), (None, False)):
        ec2 = boto3.client(
            "ec2",
            region_name="eu-central-1",
            endpoint_url=standin.endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            aws_session_token=token_given,
        )
        if is_right:
            assert ec2.describe_volumes()["Volumes"] == []
        else:
            with pytest.raises(ClientError, match="AuthFailure"):
                ec2.describe_volumes()
