"""AWS KMS, emulated by moto: real AES-GCM under keys in memory, forgotten when it stops.

It knows no key states, quotas or policies when it encrypts; `deploy.emulators.fault_proxy` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from activities.oneshot.installed import python
from workers.local.process import Service, free_port, port_answers, start_service

REGION = "eu-central-1"
"""Where the embedded stack's keys are."""

CREDENTIALS: Mapping[str, str] = {"AWS_ACCESS_KEY_ID": "emulated", "AWS_SECRET_ACCESS_KEY": "emulated"}
"""Environment of whoever calls it: moto checks no credentials, but the SDK wants some to sign with."""


def start_moto(folder: Path, port: int = 0) -> Service:
    """Start moto on 127.0.0.1; its endpoint is a URL, its log `folder/moto.log`.

    Raises:
        ServiceFailed: it did not become ready.
    """
    port = port or free_port()
    return start_service(
        "moto",
        python("moto.server", "-H", "127.0.0.1", "-p", str(port)),
        log=folder / "moto.log",
        ready=lambda: port_answers(port),
        endpoint=f"http://127.0.0.1:{port}",
        env=CREDENTIALS,
    )


def create_kms_key(endpoint: str, *, region: str = REGION, multi_region: bool = False) -> str:
    """Make a symmetric encryption key; returns its ARN."""
    # Here and not above: the embedded stack may run without this kind of keystore, and its SDK.
    import boto3

    kms = boto3.session.Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    ).client("kms", endpoint_url=endpoint)
    # moto leaves KeyUsage out of DescribeKey unless it was given; KMS has this default.
    return kms.create_key(KeyUsage="ENCRYPT_DECRYPT", MultiRegion=multi_region)["KeyMetadata"]["Arn"]
