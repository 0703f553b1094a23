"""A program that starts an instance as ``boxlink launch`` does, and ends it; test_killed.py kills it."""

from __future__ import annotations

from tests.aws.requests import IMAGE
from tools.fleet.ec2_instances import client, run_instance, terminate, wait_until_running

ZONES = ("eu-central-1a", "eu-central-1b")


def main() -> None:
    ec2 = client({})
    tries = [
        {
            "ImageId": IMAGE,
            "InstanceType": "c7g.large",
            "MinCount": 1,
            "MaxCount": 1,
            "Placement": {"AvailabilityZone": zone},
            "ClientToken": f"render-1-{zone}",
        }
        for zone in ZONES
    ]
    instance_id = run_instance(ec2, tries)
    wait_until_running(ec2, [instance_id])
    terminate(ec2, [instance_id])
    print(instance_id)


if __name__ == "__main__":
    main()
