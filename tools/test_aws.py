"""``make test-aws``: the tests that an account of AWS can pass or fail (tests/aws/test_account.py), on one.

BOXLINK_TEST_AWS=ZONE, e.g. eu-central-1a (of a region, not a local zone), says where; without it, or without
credentials, nothing is run. With BOXLINK_TEST_AWS_IMAGE=ami-… instances are started too; with BOXLINK_TEST_AWS_STORE
besides (s3://…) the image must have the bootstrap, and one must boot from there. All that is made is taken away again.
Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys

# us-east-1, 2026: EBS direct, EBS snapshots and gp3 (https://aws.amazon.com/ebs/pricing/).
_PRICE = (
    "about 30 blocks written and read through EBS direct ($0.006 and $0.003 a 1000), 8 MiB of snapshots\n"
    "and two volumes of 1 GiB for some minutes ($0.05 and $0.08 a GiB-month): less than a cent"
)
_INSTANCE_PRICE = "; two t4g.nano for some minutes, a minute each at least ($0.0042 an hour): less than a cent"


def main() -> int:
    """pytest's exit code; 0 where there is nothing to run on."""
    zone, image = os.environ.get("BOXLINK_TEST_AWS", ""), os.environ.get("BOXLINK_TEST_AWS_IMAGE", "")
    if not zone:
        print("test-aws: skipped. BOXLINK_TEST_AWS=ZONE (eu-central-1a) says where to run it", file=sys.stderr)
        return 0
    who = _account(zone)
    if not who:
        print("test-aws: skipped, there are no credentials (aws sts get-caller-identity)", file=sys.stderr)
        return 0
    print(f"test-aws: in account {who}, zone {zone}. It costs {_PRICE}{_INSTANCE_PRICE if image else ''}.", flush=True)
    command = [sys.executable, "-m", "pytest", "tests/aws/test_account.py", *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


def _account(zone: str) -> str:
    """The account's number as its credentials give it, for nothing; empty without credentials that are good."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.session.Session(region_name=zone[:-1]).client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        print(f"test-aws: {str(error)[:300]}", file=sys.stderr)
        return ""
    return str(answer["Account"])


if __name__ == "__main__":
    sys.exit(main())
