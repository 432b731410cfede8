"""Places where bundles are kept: a file is there whole or not at all, and only old ones are ever deleted."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from activities.ledger.bundle.bucket import Bucket
from activities.ledger.bundle.places import Folder, Place, file_name, surplus, write_everywhere
from workers.local.moto import CREDENTIALS, REGION, start_moto
from workers.local.process import Service
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.import_approval import BundleHead
from workflows.contracts.trust.service_errors import BundleUnavailable

if TYPE_CHECKING:
    pass

DATA = b'{"type":"masterkey-bundle"}'


def name(number: int) -> str:
    return file_name(BundleHead(events=number, digest=digest(str(number).encode())))


def test_the_newest_bundle_is_the_last_by_name() -> None:
    assert name(123).startswith("masterkey-000123-")
    names = [name(number) for number in (7, 123, 999_999)]
    assert names == sorted(names)


def test_surplus_are_the_oldest_by_number_and_never_what_was_just_written() -> None:
    names = [name(number) for number in (9, 1_000_000, 5, 999_999)]
    assert surplus([*names, "roster.json", "masterkey-x.json"], 2, names[0]) == [names[2]]
    assert surplus(names, 3, names[0]) == [names[2]]
    assert surplus(names, 1, names[2]) == [names[3], names[0]]
    assert surplus(names, 4, names[0]) == []


def test_a_folder_is_made_for_its_owner_only_and_holds_the_bytes(tmp_path: Path) -> None:
    place = Folder(tmp_path / "deep" / "bundles")
    for data in (DATA, DATA + b" newer roster"):
        assert place.write(name(1), data) == str(place.directory / name(1))
        assert (place.directory / name(1)).read_bytes() == data
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in place.directory.iterdir()] == [0o600]


def test_a_write_that_dies_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path)
    place.write(name(1), DATA)

    def die(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(BundleUnavailable, match="No space left") as caught:
            place.write(name(1), b"half")
    assert caught.value.subject == str(tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name(1), DATA)]


def test_only_the_newest_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine", encoding="utf-8")
    killed, writing = tmp_path / ".masterkey-killed.new", tmp_path / ".masterkey-writing.new"
    killed.touch()
    writing.touch()
    os.utime(killed, (time.time() - 7200,) * 2)
    place = Folder(tmp_path, keep=2)
    for number in range(1, 6):
        place.write(name(number), DATA)
    assert sorted(os.listdir(tmp_path)) == sorted([name(4), name(5), "notes.json", writing.name])


def test_old_bundles_that_cannot_be_deleted_are_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / name(1)).mkdir()
    assert Folder(tmp_path, keep=1).write(name(2), DATA)
    assert "were not deleted" in caplog.text


def test_every_place_is_tried_and_all_that_fail_are_named(tmp_path: Path) -> None:
    for blocked in ("a", "c"):
        (tmp_path / blocked).touch()
    with pytest.raises(BundleUnavailable) as caught:
        write_everywhere([Folder(tmp_path / which) for which in "abc"], name(1), DATA)
    assert (tmp_path / "b" / name(1)).read_bytes() == DATA
    assert f"{tmp_path / 'a'}" in caught.value.message
    assert f"{tmp_path / 'c'}" in caught.value.message


# --- buckets ---


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = start_moto(tmp_path_factory.mktemp("moto"))
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in CREDENTIALS.items():
            patch.setenv(variable, value)
        client(service).create_bucket(Bucket="bundles", CreateBucketConfiguration={"LocationConstraint": REGION})
        yield service
    service.stop()


def client(service: Service):  # type: ignore[no-untyped-def]
    return boto3.client("s3", region_name=REGION, endpoint_url=service.endpoint)


def opened(url: str, endpoint: str, keep: int | None = None) -> Place:
    return Bucket.open(url, endpoint=endpoint, region=REGION, keep=keep)


@pytest.mark.parametrize(("url", "prefix"), [("s3://bundles", ""), ("s3://bundles/eu/prod/", "eu/prod/")])
def test_a_bucket_holds_the_bytes_and_their_checksum(s3: Service, url: str, prefix: str) -> None:
    place = opened(url, s3.endpoint)
    for _ in range(2):
        assert place.write(name(1), DATA) == f"s3://bundles/{prefix}{name(1)}"
    found = client(s3).get_object(Bucket="bundles", Key=prefix + name(1))
    assert found["Body"].read() == DATA
    kept = client(s3).head_object(Bucket="bundles", Key=prefix + name(1), ChecksumMode="ENABLED")
    assert kept["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(DATA).digest()).decode()


def test_a_bucket_keeps_only_the_newest_of_its_prefix(s3: Service) -> None:
    client(s3).put_object(Bucket="bundles", Key=f"kept/other/{name(1)}", Body=DATA)
    client(s3).put_object(Bucket="bundles", Key="kept/notes.json", Body=DATA)
    place = opened("s3://bundles/kept", s3.endpoint, keep=2)
    for number in range(1, 5):
        place.write(name(number), DATA)
    keys = {entry["Key"] for entry in client(s3).list_objects_v2(Bucket="bundles", Prefix="kept/")["Contents"]}
    assert keys == {f"kept/{name(3)}", f"kept/{name(4)}", f"kept/other/{name(1)}", "kept/notes.json"}


def test_a_bucket_that_is_not_there_or_does_not_answer_is_tried_again(s3: Service) -> None:
    with pytest.raises(BundleUnavailable, match=r"s3://nowhere.*NoSuchBucket") as caught:
        opened("s3://nowhere/x", s3.endpoint).write(name(1), DATA)
    assert caught.value.retryable
    with pytest.raises(BundleUnavailable, match="s3://bundles"):
        opened("s3://bundles", "http://127.0.0.1:9").write(name(1), DATA)


def test_a_bucket_that_cannot_be_opened_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigurationInvalid, match="s3://bundles"):
        opened("s3://bundles", "no url")
