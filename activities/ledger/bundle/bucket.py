"""A bucket for bundles: Amazon S3, or whatever speaks its protocol.

A bundle is one PutObject, with its SHA-256 as a checksum that the service verifies
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html). Credentials come from the SDK's own chain;
with `keep` they also need to list and to delete, and are better kept without.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from activities.ledger.bundle.places import surplus
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.service_errors import BundleUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 2})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """Objects of one prefix of a bucket.

    Attributes:
        prefix: "", or ends with a slash.
        keep: how many of the newest are kept; all if None.
    """

    client: S3Client
    bucket: str
    prefix: str
    keep: int | None = None

    @classmethod
    def open(cls, url: str, *, endpoint: str | None, region: str | None, keep: int | None) -> Self:
        """Prepare; connects to nothing yet.

        Args:
            url: `s3://BUCKET/PREFIX`.
            endpoint: of an S3-compatible service; Amazon's if None.
            region: of the bucket; as the SDK is configured if None.
            keep: see the class.

        Raises:
            ConfigurationInvalid: the SDK cannot be used as it is configured.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        try:
            client = boto3.session.Session(region_name=region).client("s3", endpoint_url=endpoint, config=_CONFIG)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationInvalid(
                f"bundles cannot be written to {url}: {_reason(error)}", next_step="check s3, endpoint and region"
            ) from None
        return cls(client, bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "", keep)

    def write(self, name: str, data: bytes) -> str:
        """See `Place.write`."""
        key = self.prefix + name
        try:
            self.client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=data,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(hashlib.sha256(data).digest()).decode("ascii"),
                ContentType="application/json",
            )
        except (BotoCoreError, ClientError) as error:
            raise _unavailable(f"s3://{self.bucket}/{key}", error) from None
        self._tidy(name)
        return f"s3://{self.bucket}/{key}"

    def _tidy(self, written: str) -> None:
        if self.keep is None:
            return
        # The bundle is safe by now: what cannot be tidied up is no reason to fail.
        try:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            names = [entry["Key"].removeprefix(self.prefix) for page in pages for entry in page.get("Contents", ())]
            for name in surplus(names, self.keep, written):
                self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)
        except (BotoCoreError, ClientError) as error:
            _log.warning("old bundles in s3://%s/%s were not deleted: %s", self.bucket, self.prefix, _reason(error))


def _unavailable(place: str, error: Exception) -> BundleUnavailable:
    return BundleUnavailable(f"cannot write the bundle to {place}: {_reason(error)}", subject=place)


def _reason(error: Exception) -> str:
    # The service's own message may quote the request: its code is enough.
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
