"""AWS KMS: a symmetric KMS key wraps DEKs with Encrypt and Decrypt, bound by the encryption context.

The key that AWS says it used is what is recorded, whatever alias was configured. Replicas of a multi-region
key are one key: their ids differ in the region only, which is recorded as `*`, so that the planner sees that
two replicas are no two keystores, and any replica unwraps what another one wrapped.

The encryption context appears in CloudTrail in plaintext; it holds no secret. Credentials come from the SDK's
own chain. Errors: https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and the error lists of
Encrypt, Decrypt and DescribeKey.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError
from pydantic import model_validator

from activities.crypto.context import Context
from activities.keystores.kinds.base import BaseKeystore, KeyRef, KeystoreSettings, WrappedKey
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, KeystoreError, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

Answer = TypeVar("Answer", bound=Mapping[str, object])

_ANY_REGION = "*"
_ARN = re.compile(
    r"^arn:(?P<partition>aws[a-z-]*):kms:(?P<region>[a-z0-9-]+):(?P<account>[0-9]{12}):"
    r"(?P<resource>(?:key|alias)/[A-Za-z0-9/_-]+)$"
)
_MULTI_REGION_KEY = re.compile(r"^(arn:aws[a-z-]*:kms:)(?:[a-z0-9-]+|\*)(:[0-9]{12}:key/mrk-[0-9a-f-]+)$")
_KEY_ARN = re.compile(r"^arn:aws[a-z-]*:kms:(?:[a-z0-9-]+|\*):[0-9]{12}:key/[0-9a-z-]+$")

_CODES: dict[str, type[MasterKeyError]] = {
    "AccessDeniedException": KeystoreAccessDenied,
    "ExpiredTokenException": KeystoreAccessDenied,
    "ExpiredToken": KeystoreAccessDenied,
    "IncompleteSignature": KeystoreAccessDenied,
    "InvalidClientTokenId": KeystoreAccessDenied,
    "InvalidIdentityToken": KeystoreAccessDenied,
    "InvalidSignatureException": KeystoreAccessDenied,
    "MissingAuthenticationTokenException": KeystoreAccessDenied,
    "NotAuthorized": KeystoreAccessDenied,
    "OptInRequired": KeystoreAccessDenied,
    "RequestExpired": KeystoreAccessDenied,
    "UnrecognizedClientException": KeystoreAccessDenied,
    "DisabledException": KeyDisabled,
    "NotFoundException": KeyNotFound,
    "IncorrectKeyException": CiphertextInvalid,
    "InvalidCiphertextException": CiphertextInvalid,
    "LimitExceededException": KeystoreThrottled,
    "RequestLimitExceeded": KeystoreThrottled,
    "Throttling": KeystoreThrottled,
    "ThrottlingException": KeystoreThrottled,
    "TooManyRequestsException": KeystoreThrottled,
    "DependencyTimeoutException": KeystoreUnavailable,
    "KMSInternalException": KeystoreUnavailable,
    "KeyUnavailableException": KeystoreUnavailable,
    "InvalidArnException": ConfigurationInvalid,
    "InvalidKeyUsageException": ConfigurationInvalid,
    "ValidationException": ConfigurationInvalid,
}

# Updating: a multi-region key is changing its primary region, and works meanwhile.
_USABLE_STATES = ("Enabled", "Updating")
_STATES: dict[str, type[KeystoreError]] = {
    "Disabled": KeyDisabled,
    "PendingDeletion": KeyPendingDeletion,
    "PendingReplicaDeletion": KeyPendingDeletion,
    "PendingImport": KeyNotFound,
}

_CREDENTIALS_ERRORS = (
    CredentialRetrievalError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)


class AwsKmsSettings(KeystoreSettings):
    """Settings of an AWS KMS key.

    Attributes:
        key_id: key ARN, alias ARN, `alias/NAME` or key id. With an alias, a wrap uses the key that the alias
            names then, and an unwrap the key that was recorded.
        region: region of the endpoint; needed unless `key_id` is an ARN. For a multi-region key it may be
            another region than the ARN's: that of the replica to use.
    """

    type: Literal["aws-kms"] = "aws-kms"
    key_id: str
    region: str = ""

    @model_validator(mode="before")
    @classmethod
    def _region_of_the_arn(cls, values: object) -> object:
        if isinstance(values, dict) and not values.get("region"):
            arn = _ARN.match(str(values.get("key_id")))
            if arn is None:
                raise ValueError("region is needed unless key_id is an ARN")
            return {**values, "region": arn["region"]}
        return values

    @model_validator(mode="after")
    def _key_is_in_the_region(self) -> AwsKmsSettings:
        arn = _ARN.match(self.key_id)
        if arn is None and self.key_id.startswith("arn:"):
            raise ValueError("key_id is not the ARN of a KMS key or alias")
        if arn and arn["region"] != self.region and not _MULTI_REGION_KEY.match(self.key_id):
            raise ValueError("key_id is an ARN of another region")
        return self


def canonical_key_id(arn: str) -> str:
    """The ARN that all replicas of a key share: region `*` for a multi-region key, else unchanged."""
    return _MULTI_REGION_KEY.sub(rf"\g<1>{_ANY_REGION}\g<2>", arn)


def regional_key_id(key_id: str, region: str) -> str:
    """The ARN of the replica in `region` for a multi-region key; any other key id unchanged."""
    return _MULTI_REGION_KEY.sub(rf"\g<1>{region}\g<2>", key_id)


class AwsKms(BaseKeystore[AwsKmsSettings]):
    """An AWS KMS key as a `Keystore`."""

    SERVICE = "AWS KMS"
    LONGEST = 6144
    """What Decrypt takes at most; a wrapped DEK has about 200 bytes."""

    def __init__(self, name: str, settings: AwsKmsSettings) -> None:
        super().__init__(name, settings)
        self._own_id = regional_key_id(settings.key_id, settings.region)
        self._session: boto3.session.Session | None = None
        self._opened: KMSClient | None = None
        self._warm_up()

    def describe(self) -> KeyRef:
        """DescribeKey: the key's ARN, if it is enabled and a symmetric encryption key.

        Raises:
            KeyDisabled, KeyPendingDeletion, KeyNotFound, KeystoreUnavailable: its state.
            ConfigurationInvalid: it is a key of another kind.
            KeystoreError: as for any call.
        """
        return self._describe(self._own_id)

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Encrypt: 32 bytes become about 200."""
        answer = self._call(
            lambda kms: kms.encrypt(KeyId=self._own_id, Plaintext=dek, EncryptionContext=dict(context)),
            self._own_id,
            "CiphertextBlob",
            "KeyId",
        )
        return WrappedKey(answer["CiphertextBlob"], KeyRef(canonical_key_id(answer["KeyId"])))

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        key_id = regional_key_id(key.key_id, self._settings.region)
        answer = self._call(
            lambda kms: kms.decrypt(KeyId=key_id, CiphertextBlob=wrapped, EncryptionContext=dict(context)),
            key_id,
            "Plaintext",
            "KeyId",
        )
        if canonical_key_id(answer["KeyId"]) != key.key_id:
            raise self._error(CiphertextInvalid, "was unwrapped by another key than the one recorded")
        return answer["Plaintext"]

    def _is_own(self, key: KeyRef) -> bool:
        if not _KEY_ARN.match(key.key_id):
            return False
        if ":key/" in self._own_id:
            return key.key_id == canonical_key_id(self._own_id)
        if "alias/" in self._own_id:
            # What the alias named when it wrapped is not known here: the key policy and the signed manifest
            # say what may be unwrapped.
            return True
        return key.key_id.endswith(f":key/{self._own_id}")

    def _warm_up(self) -> None:
        """Read the SDK's service model now, once for all forked children: most of the time a client takes.

        A client that is given credentials looks for none and connects to nothing; this one is thrown away.
        """
        try:
            self._session = boto3.session.Session()
            nobody = "none"
            self._session.client(
                "kms", region_name=self._settings.region, aws_access_key_id=nobody, aws_secret_access_key=nobody
            )
        except BotoCoreError:
            # A wrong profile, say: the call that needs it reports it.
            self._session = None

    def _client(self) -> KMSClient:
        if self._opened is None:
            connect, read = self._settings.timeouts
            session = self._session or boto3.session.Session()
            self._opened = session.client(
                "kms",
                region_name=self._settings.region,
                endpoint_url=self._settings.endpoint,
                verify=str(self._settings.ca_file) if self._settings.ca_file else None,
                config=Config(
                    connect_timeout=connect,
                    read_timeout=read,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                ),
            )
        return self._opened

    def _describe(self, key_id: str) -> KeyRef:
        answer = self._call(lambda kms: kms.describe_key(KeyId=key_id), key_id, "KeyMetadata")
        metadata = answer["KeyMetadata"]
        state = metadata.get("KeyState", "")
        if state not in _USABLE_STATES:
            raise self._error(_STATES.get(state, KeystoreUnavailable), f"key state {state}")
        usage, spec = metadata.get("KeyUsage"), metadata.get("KeySpec")
        if usage != "ENCRYPT_DECRYPT" or spec != "SYMMETRIC_DEFAULT":
            raise self._error(ConfigurationInvalid, f"needs a symmetric encryption key, not {usage} {spec}")
        return KeyRef(canonical_key_id(metadata.get("Arn", "")))

    def _call(self, ask: Callable[[KMSClient], Answer], key_id: str, *fields: str) -> Answer:
        """The answer to one request about `key_id`, which has these fields."""
        try:
            answer = ask(self._client())
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "KMSInvalidStateException":
                raise self._invalid_state(key_id) from None
            raise self._error(_CODES.get(code) or _by_status(status), code) from None
        except _CREDENTIALS_ERRORS as error:
            raise self._error(KeystoreAccessDenied, f"no credentials: {type(error).__name__}") from None
        except (BotoConnectionError, HTTPClientError, ResponseParserError) as error:
            raise self._error(KeystoreUnavailable, type(error).__name__) from None
        except BotoCoreError as error:
            raise self._error(ConfigurationInvalid, type(error).__name__) from None
        if not all(field in answer for field in fields):
            raise self._error(KeystoreUnavailable, "the answer is not one of KMS")
        return answer

    def _invalid_state(self, key_id: str) -> MasterKeyError:
        """What KMSInvalidStateException means: only DescribeKey tells, other than in prose."""
        try:
            self._describe(key_id)
        except (KeyDisabled, KeyPendingDeletion, KeyNotFound) as error:
            return error
        except MasterKeyError:
            return self._error(KeystoreUnavailable, "KMSInvalidStateException, and DescribeKey fails too")
        return self._error(KeystoreUnavailable, "KMSInvalidStateException")


def _by_status(status: int) -> type[MasterKeyError]:
    """The error for a code that the table does not have."""
    if status == 429:
        return KeystoreThrottled
    if status >= 500:
        return KeystoreUnavailable
    return KeystoreAccessDenied if status in (401, 403) else ConfigurationInvalid
