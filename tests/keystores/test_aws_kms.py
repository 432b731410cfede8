"""AWS KMS against moto; what moto does not do, against recorded answers of KMS through the proxy."""

from __future__ import annotations

import base64
import json
import time
from typing import ClassVar

import boto3
import pytest
from pydantic import ValidationError

from activities.keystores.kinds.aws_kms import AwsKms, AwsKmsSettings
from activities.keystores.kinds.base import KeyRef
from deploy.emulators.fault_proxy import Answer, Change, Delay, FaultProxy, Hang, Reset
from tests.keystores.contract import CONTEXT, ErrorTypes, KeystoreContract, new_dek
from workers.local.moto import REGION, create_kms_key
from workers.local.process import Service, free_port
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

pytestmark = pytest.mark.usefixtures("aws_credentials")

ACCOUNT = "123456789012"
MISSING = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"


def opened(key_id: str, endpoint: str, **settings: object) -> AwsKms:
    fields = {"key_id": key_id, "endpoint": endpoint, "timeout_seconds": 4, **settings}
    return AwsKms("aws-fra", AwsKmsSettings.model_validate(fields))


def short(arn: str) -> str:
    """The key id in an ARN: moto's administrative calls fail (HTTP 500) with the ARN, which KMS takes."""
    return arn.rpartition("/")[2]


def refusal(code: str, status: int = 400, message: str = "a message of KMS", match: str = "") -> Answer:
    """An error as KMS writes it: JSON 1.1, with the code in the body and in a header."""
    body = json.dumps({"__type": code, "message": message}).encode()
    headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-errortype": code}
    return Answer(status, headers, body, match=match)


def multi_region_key(moto: Service) -> tuple[str, str]:
    """The ARNs of a new key and of its replica in eu-west-1."""
    primary = create_kms_key(moto.endpoint, multi_region=True)
    kms = boto3.client("kms", region_name=REGION, endpoint_url=moto.endpoint)
    replica = kms.replicate_key(KeyId=short(primary), ReplicaRegion="eu-west-1")["ReplicaKeyMetadata"]["Arn"]
    return primary, replica


@pytest.fixture(scope="session")
def key_arn(moto: Service) -> str:
    return create_kms_key(moto.endpoint)


@pytest.fixture
def keystore(moto: Service, key_arn: str) -> AwsKms:
    return opened(key_arn, moto.endpoint)


@pytest.fixture
def other_keystore(moto: Service) -> AwsKms:
    return opened(create_kms_key(moto.endpoint), moto.endpoint)


@pytest.fixture
def missing_keystore(moto: Service) -> AwsKms:
    return opened(MISSING, moto.endpoint)


@pytest.fixture
def proxied(moto_proxy: FaultProxy, key_arn: str) -> AwsKms:
    return opened(key_arn, moto_proxy.url)


class TestContract(KeystoreContract):
    # moto answers AccessDeniedException where KMS answers IncorrectKeyException: see below for that.
    foreign_errors: ClassVar[ErrorTypes] = (CiphertextInvalid, KeystoreAccessDenied)


def test_the_recorded_id_is_the_arn_that_kms_used(keystore: AwsKms, key_arn: str) -> None:
    assert keystore.describe() == KeyRef(key_arn)
    assert keystore.wrap(new_dek(), CONTEXT).key == KeyRef(key_arn)


def test_a_key_id_without_arn_is_the_same_key(moto: Service, key_arn: str) -> None:
    keystore = opened(short(key_arn), moto.endpoint, region=REGION)
    dek = new_dek()
    wrapped = keystore.wrap(dek, CONTEXT)
    assert wrapped.key == KeyRef(key_arn)
    assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


def test_an_alias_resolves_to_its_key_and_what_it_wrapped_outlives_its_change(moto: Service, key_arn: str) -> None:
    kms = boto3.client("kms", region_name=REGION, endpoint_url=moto.endpoint)
    kms.create_alias(AliasName="alias/masterkey", TargetKeyId=key_arn)
    by_alias = opened("alias/masterkey", moto.endpoint, region=REGION)
    by_alias_arn = opened(f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/masterkey", moto.endpoint)
    assert by_alias.describe() == by_alias_arn.describe() == KeyRef(key_arn)
    dek = new_dek()
    wrapped = by_alias.wrap(dek, CONTEXT)
    assert wrapped.key == KeyRef(key_arn)

    kms.update_alias(AliasName="alias/masterkey", TargetKeyId=create_kms_key(moto.endpoint))
    assert by_alias.describe() != KeyRef(key_arn)
    assert by_alias.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


def test_replicas_of_a_multi_region_key_are_one_key(moto: Service) -> None:
    primary, replica = multi_region_key(moto)
    here, there = opened(primary, moto.endpoint), opened(replica, moto.endpoint)
    moved = opened(primary, moto.endpoint, region="eu-west-1")
    assert here.describe() == there.describe() == moved.describe() == KeyRef(primary.replace(REGION, "*"))
    assert here.wrap(new_dek(), CONTEXT).key == there.wrap(new_dek(), CONTEXT).key == here.describe()


def test_a_replica_unwraps_what_the_other_region_wrapped(moto: Service, moto_proxy: FaultProxy) -> None:
    primary, replica = multi_region_key(moto)
    wrapped = opened(primary, moto.endpoint).wrap(new_dek(), CONTEXT)
    dek = new_dek()
    # Recorded, because moto cuts the id of a multi-region key short in its ciphertexts, and opens none.
    body = json.dumps({"KeyId": replica, "Plaintext": base64.b64encode(dek).decode()}).encode()
    moto_proxy.rule = Answer(200, {"Content-Type": "application/x-amz-json-1.1"}, body)
    for there in (opened(replica, moto_proxy.url), opened(primary, moto_proxy.url, region="eu-west-1")):
        assert there.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek
        request = moto_proxy.requests[-1]
        assert request.json()["KeyId"] == replica
        assert "/eu-west-1/kms/" in request.headers["Authorization"]


def test_unwrapping_names_the_key_and_sends_the_context(proxied: AwsKms, moto_proxy: FaultProxy, key_arn: str) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    for request in moto_proxy.requests:
        assert request.json()["KeyId"] == key_arn
        assert request.json()["EncryptionContext"] == CONTEXT


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal("AccessDeniedException"), KeystoreAccessDenied),
        (refusal("ExpiredTokenException"), KeystoreAccessDenied),
        (refusal("UnrecognizedClientException"), KeystoreAccessDenied),
        (refusal("InvalidSignatureException"), KeystoreAccessDenied),
        (refusal("DisabledException"), KeyDisabled),
        (refusal("NotFoundException"), KeyNotFound),
        (refusal("InvalidCiphertextException"), CiphertextInvalid),
        (refusal("IncorrectKeyException"), CiphertextInvalid),
        (refusal("ThrottlingException"), KeystoreThrottled),
        (refusal("KMSInternalException", 500), KeystoreUnavailable),
        (refusal("KeyUnavailableException", 500), KeystoreUnavailable),
        (refusal("DependencyTimeoutException", 503), KeystoreUnavailable),
        (refusal("InvalidKeyUsageException"), ConfigurationInvalid),
        (refusal("ValidationException"), ConfigurationInvalid),
        (refusal("SomethingNewException", 429), KeystoreThrottled),
        (refusal("SomethingNewException", 500), KeystoreUnavailable),
        (refusal("SomethingNewException", 403), KeystoreAccessDenied),
        (Answer(503, {"Content-Type": "text/html"}, b"<html>a load balancer</html>"), KeystoreUnavailable),
        (Answer(200, {}, b"<html>a captive portal</html>"), KeystoreUnavailable),
        (Reset(), KeystoreUnavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_an_answer_of_kms_becomes_the_error_that_it_means(
    proxied: AwsKms, moto_proxy: FaultProxy, answer: Answer, expected: type[MasterKeyError]
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    moto_proxy.requests.clear()
    moto_proxy.rule = answer
    with pytest.raises(expected) as caught:
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    assert caught.value.subject == "aws-fra"
    assert "aws-fra" in caught.value.message
    assert "a message of KMS" not in caught.value.message
    assert len(moto_proxy.requests) == 1, "the workflow retries, not the SDK"


def test_an_invalid_state_is_told_apart_by_describing_the_key(moto: Service, moto_proxy: FaultProxy) -> None:
    arn = create_kms_key(moto.endpoint)
    keystore = opened(arn, moto_proxy.url)
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    moto_proxy.rule = refusal("KMSInvalidStateException", match="TrentService.Decrypt")
    with pytest.raises(KeystoreUnavailable):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    boto3.client("kms", region_name=REGION, endpoint_url=moto.endpoint).schedule_key_deletion(KeyId=short(arn))
    with pytest.raises(KeyPendingDeletion):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def test_describe_refuses_a_key_that_is_disabled_or_going(moto: Service) -> None:
    arn = create_kms_key(moto.endpoint)
    kms = boto3.client("kms", region_name=REGION, endpoint_url=moto.endpoint)
    kms.disable_key(KeyId=short(arn))
    with pytest.raises(KeyDisabled):
        opened(arn, moto.endpoint).describe()
    kms.schedule_key_deletion(KeyId=short(arn))
    with pytest.raises(KeyPendingDeletion):
        opened(arn, moto.endpoint).describe()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PendingReplicaDeletion", KeyPendingDeletion),
        ("PendingImport", KeyNotFound),
        ("Unavailable", KeystoreUnavailable),
        ("Creating", KeystoreUnavailable),
        ("Updating", None),
    ],
)
def test_describe_knows_the_states_that_moto_does_not(
    proxied: AwsKms, moto_proxy: FaultProxy, key_arn: str, state: str, expected: type[MasterKeyError] | None
) -> None:
    metadata = {"KeyState": state, "Arn": key_arn, "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"}
    moto_proxy.rule = Change({"KeyMetadata": {"KeyId": "x", **metadata}})
    if expected is None:
        assert proxied.describe() == KeyRef(key_arn)
    else:
        with pytest.raises(expected):
            proxied.describe()


def test_an_asymmetric_key_is_refused(moto: Service) -> None:
    kms = boto3.client("kms", region_name=REGION, endpoint_url=moto.endpoint)
    key = kms.create_key(KeyUsage="ENCRYPT_DECRYPT", KeySpec="RSA_2048")["KeyMetadata"]
    with pytest.raises(ConfigurationInvalid):
        opened(key["Arn"], moto.endpoint).describe()


def test_an_answer_for_another_key_is_refused(proxied: AwsKms, moto_proxy: FaultProxy) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    moto_proxy.rule = Change({"KeyId": MISSING})
    with pytest.raises(CiphertextInvalid):
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def test_missing_credentials_deny_access(moto: Service, key_arn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore = opened(key_arn, moto.endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()


def test_credentials_are_looked_for_at_the_first_call_only(
    moto: Service, key_arn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "does-not-exist")
    keystore = opened(key_arn, moto.endpoint)
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()
    monkeypatch.delenv("AWS_PROFILE")
    assert keystore.describe() == KeyRef(key_arn)


def test_a_refused_connection_is_an_outage(key_arn: str) -> None:
    with pytest.raises(KeystoreUnavailable):
        opened(key_arn, f"http://127.0.0.1:{free_port()}").describe()


@pytest.mark.parametrize("rule", [Hang(), Delay(3.0)], ids=["it never answers", "it answers too late"])
def test_a_call_that_hangs_ends_in_time(moto_proxy: FaultProxy, key_arn: str, rule: Hang | Delay) -> None:
    keystore = opened(key_arn, moto_proxy.url, timeout_seconds=0.6)
    moto_proxy.rule = rule
    started = time.monotonic()
    with pytest.raises(KeystoreUnavailable):
        keystore.wrap(new_dek(), CONTEXT)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "fields",
    [
        {"key_id": "alias/masterkey"},
        {"key_id": "arn:aws:s3:::bucket", "region": REGION},
        {"key_id": MISSING, "region": "eu-west-1"},
        {"key_id": MISSING, "secret": "x"},
    ],
    ids=["no region", "no KMS key", "another region", "an unknown field"],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        AwsKmsSettings.model_validate(fields)
