"""An offline custodian's keystore: an age key that decrypts at its custodian's only, and no other kind of key."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

import pyrage  # type: ignore[import-untyped]
import pytest

from activities.crypto import age_wrap
from activities.crypto.age_wrap import check_recipient, wrap_dek
from activities.crypto.context import context_hash
from activities.crypto.hpke import PrivateKey
from activities.keystores import datakey
from activities.keystores.context import CallContext
from activities.keystores.kinds.age_keys import AgeIdentity, read_identity, write_identity
from activities.keystores.kinds.base import KeyRef, Keystore
from activities.keystores.kinds.offline import Offline, OfflineSettings
from activities.keystores.kinds.registry import open_keystore, parse_settings
from activities.strongroom import session
from tests import quick_age
from tests.keystores.contract import CONTEXT, KeystoreContract, new_dek
from tests.strongroom.test_session import Ceremony, manifest_of
from tests.world import KEYSTORES, NAMES, World, now
from workflows.contracts.messages.keystore import CheckDataKey, GenerateDataKey, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import Protect
from workflows.contracts.trust.canonical import Signed, decode64, encode64
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid, ConfigurationInvalid, ManifestInvalid
from workflows.contracts.trust.fields import CLASSICAL
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.plan import TargetShard
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import KeystoreWorker
from workflows.contracts.trust.service_errors import KeystoreAccessDenied
from workflows.contracts.trust.session import DekResponse
from workflows.contracts.trust.signatures import open_signed

# The pair that age's own tests use.
SECRET = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
# The points 0 and 1, with correct checksums: whatever is encrypted to them, anybody decrypts.
LOW_ORDER = (
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
)


class OfflineKey(Offline):
    """An offline keystore with its files at hand."""

    def __init__(self, folder: Path, name: str = "offline") -> None:
        self.age = AgeIdentity.generate()
        self.file = folder / f"{name}.agekey"
        write_identity(self.file, self.age, None)
        self.settings = OfflineSettings(recipient=self.age.recipient, identity_file=self.file)
        super().__init__(name, self.settings)


@pytest.fixture
def key(tmp_path: Path) -> OfflineKey:
    return OfflineKey(tmp_path)


class TestOffline(KeystoreContract):
    """The contract of every keystore."""

    @pytest.fixture
    def keystore(self, key: OfflineKey) -> Keystore:
        return key

    @pytest.fixture
    def other_keystore(self, tmp_path: Path) -> Keystore:
        return OfflineKey(tmp_path, "other")

    @pytest.fixture
    def missing_keystore(self, tmp_path: Path) -> Keystore:
        settings = OfflineSettings(recipient=AgeIdentity.generate().recipient, identity_file=tmp_path / "nowhere")
        return Offline("missing", settings)

    def test_a_key_that_does_not_exist_is_not_found(self, missing_keystore: Keystore) -> None:
        # Its recipient can be wrapped for all the same: that is the point of it. Only its custodian's machine lacks it.
        wrapped = missing_keystore.wrap(new_dek(), CONTEXT)
        for call in (missing_keystore.describe, lambda: missing_keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)):
            with pytest.raises(ConfigurationInvalid, match=r"cannot read the age identity .*nowhere") as caught:
                call()
            assert "masterkey offline read" in caught.value.next_step
            assert "missing" in caught.value.message


# --- wrapping ------------------------------------------------------------------------------------------------


def test_what_the_session_wraps_the_custodian_unwraps(key: OfflineKey) -> None:
    dek = new_dek()
    wrapped = wrap_dek(key.age.recipient, dek, CONTEXT)
    assert key.unwrap(wrapped, CONTEXT, key.describe()) == dek


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_session_wraps_nothing_but_32_bytes(key: OfflineKey, length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        wrap_dek(key.age.recipient, bytes(length), CONTEXT)


def test_the_key_is_named_as_in_the_roster_and_counts_as_classical(key: OfflineKey, tmp_path: Path) -> None:
    entry = KeystoreWorker(
        name="offline", public_key=World.make(tmp_path / "w").stranger.public_key, offline=key.age.recipient
    )
    wrapped = key.wrap(new_dek(), CONTEXT)
    assert key.describe() == wrapped.key == KeyRef(entry.offline_key_id, "")
    assert wrapped.mechanism == "age-x25519"
    assert wrapped.mechanism in CLASSICAL


def test_what_is_wrapped_is_dek_and_context_hash_in_ages_own_format(key: OfflineKey) -> None:
    dek = new_dek()
    wrapped = wrap_dek(key.age.recipient, dek, CONTEXT)
    assert wrapped.startswith(b"age-encryption.org/v1\n-> ")
    assert pyrage.decrypt(wrapped, [pyrage.x25519.Identity.from_str(key.age.secret)]) == dek + context_hash(CONTEXT)


def test_an_age_file_of_another_length_or_without_the_context_is_refused(key: OfflineKey) -> None:
    for plain in (
        new_dek(),
        new_dek() + new_dek(),
        new_dek() + context_hash(CONTEXT) + b"0",
        b"",
        context_hash(CONTEXT),
    ):
        with pytest.raises(CiphertextInvalid, match="another context"):
            key.unwrap(age_wrap.encrypt(plain, key.age.recipient), CONTEXT, key.describe())


def test_no_single_bit_of_a_wrapped_dek_can_be_changed(key: OfflineKey) -> None:
    # Whatever the library says to it, a panic too, must become the one error.
    dek, ref = new_dek(), key.describe()
    wrapped = wrap_dek(key.age.recipient, dek, CONTEXT)
    for bit in range(0, 8 * len(wrapped), 5):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CiphertextInvalid):
            key.unwrap(bytes(changed), CONTEXT, ref)


def test_another_key_or_a_key_version_in_the_reference_is_refused(key: OfflineKey) -> None:
    wrapped = key.wrap(new_dek(), CONTEXT)
    for ref in (KeyRef(wrapped.key.key_id, "1"), KeyRef(wrapped.key.key_id + "0", "")):
        with pytest.raises(CiphertextInvalid, match="another key than the configured one"):
            key.unwrap(wrapped.wrapped, CONTEXT, ref)


# --- which keys are taken --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipient", "complaint"),
    [
        ("age1pq1" + "q" * 1950, "post-quantum age keys cannot be used"),
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN",
            "an SSH key is never used",
        ),
        ("ssh-rsa AAAAB3NzaC1yc2E", "an SSH key is never used"),
        (RECIPIENT[:-1] + "q", "not an age recipient"),
        (RECIPIENT[:20] + "x" + RECIPIENT[21:], "not an age recipient"),
        (RECIPIENT.upper(), "lower case"),
        (SECRET, "not an age recipient"),
        ("", "not an age recipient"),
        *[(one, "low order") for one in LOW_ORDER],
    ],
)
def test_only_x25519_recipients_are_wrapped_for(recipient: str, complaint: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=complaint) as caught:
        wrap_dek(recipient, new_dek(), CONTEXT)
    assert "masterkey offline keygen" in caught.value.next_step
    with pytest.raises(ConfigurationInvalid, match=complaint):
        parse_settings("k", {"type": "offline", "recipient": recipient})
    with pytest.raises(ValueError, match=complaint):
        check_recipient(recipient)


def test_an_identity_file_of_age_keygen_is_read(tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"# created: 2026-01-01T00:00:00Z\n# public key: {RECIPIENT}\n\n{SECRET}\n")
    file.chmod(0o600)
    assert read_identity(file, never_asked).recipient == RECIPIENT


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it holds 0 keys"),
        ("# a comment only\n", "it holds 0 keys"),
        (f"{SECRET}\n{SECRET}\n", "it holds 2 keys"),
        (SECRET[:-1] + "Q", "altered or mistyped"),
        (SECRET.lower(), "begins with AGE-SECRET-KEY-1"),
        ("AGE-SECRET-KEY-PQ-1" + "Q" * 100, "post-quantum"),
        ("AGE-PLUGIN-YUBIKEY-1Q", "begins with AGE-SECRET-KEY-1"),
        (RECIPIENT, "begins with AGE-SECRET-KEY-1"),
        ("ssh-ed25519 AAAA", "an SSH key is never used"),
        ("\0\xff", "begins with AGE-SECRET-KEY-1"),
        ("# comment\n" * 7000 + SECRET, "too long"),
    ],
)
def test_what_is_no_identity_file_is_refused_without_quoting_it(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "key.txt"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigurationInvalid, match=complaint) as caught:
        read_identity(file, never_asked)
    assert SECRET[16:30] not in caught.value.diagnostics
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_custodians_signing_key_is_never_the_identity(tmp_path: Path, kind: str) -> None:
    # age itself would take it: it decrypts with SSH keys.
    file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True)
    with pytest.raises(ConfigurationInvalid, match="an SSH key is never used"):
        read_identity(file, never_asked)


def test_an_identity_that_others_can_read_is_refused(key: OfflineKey) -> None:
    key.file.chmod(0o640)
    with pytest.raises(ConfigurationInvalid, match="can be read by others") as caught:
        key.describe()
    assert "chmod 600" in caught.value.next_step


def test_the_identity_of_another_recipient_is_refused_and_no_shard_is_blamed(key: OfflineKey, tmp_path: Path) -> None:
    other = OfflineKey(tmp_path, "other")
    mixed = Offline("mixed", key.settings.model_copy(update={"identity_file": other.file}))
    wrapped = key.wrap(new_dek(), CONTEXT)
    for call in (mixed.describe, lambda: mixed.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)):
        with pytest.raises(ConfigurationInvalid, match=f"is the key of {other.age.recipient}"):
            call()


def test_without_an_identity_file_it_wraps_and_says_what_is_missing(key: OfflineKey) -> None:
    public = Offline("public", OfflineSettings(recipient=key.age.recipient))
    wrapped = public.wrap(new_dek(), CONTEXT)
    with pytest.raises(ConfigurationInvalid, match="no identity_file is configured"):
        public.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"endpoint": "https://x.example"}, "connects to nothing"),
        ({"ca_file": "x"}, "connects to nothing"),
        ({"passphrase_env": "A"}, "set it too"),
        ({"identity_file": "f", "passphrase_env": "A", "passphrase_file": "b"}, "only one of"),
        ({"identity": "f"}, "Extra inputs"),
        ({"passphrase": "hunter2"}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(more: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=complaint) as caught:
        parse_settings("k", {"type": "offline", "recipient": RECIPIENT, **more})
    assert "hunter2" not in caught.value.diagnostics


# --- passphrases ---------------------------------------------------------------------------------------------


def never_asked() -> str:
    raise AssertionError("no passphrase is needed here")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> tuple[AgeIdentity, Path]:
    """An identity file under the passphrase `correct horse`."""
    identity, file = AgeIdentity.generate(), tmp_path_factory.mktemp("locked") / "key.agekey"
    write_private(file, quick_age.encrypt(f"{identity.secret}\n".encode(), "correct horse"))
    return identity, file


def write_private(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    file.chmod(0o600)


def test_an_encrypted_identity_file_is_ages_own_and_shows_nothing(tmp_path: Path) -> None:
    # With the scrypt of those who write such files in earnest: a second here, and another to read it.
    identity, file = AgeIdentity.generate(), tmp_path / "key.agekey"
    write_identity(file, identity, "correct horse")
    data = file.read_bytes()
    assert data.startswith(b"age-encryption.org/v1\n-> scrypt ")
    assert identity.secret.encode() not in data
    assert file.stat().st_mode & 0o777 == 0o600
    assert identity.secret in pyrage.passphrase.decrypt(data, "correct horse").decode()
    assert identity.secret not in repr(identity)


def test_the_passphrase_comes_by_reference(
    locked: tuple[AgeIdentity, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, file = locked
    (tmp_path / "good").write_text("correct horse\n")
    monkeypatch.setenv("WRONG", "battery staple")
    table = {"type": "offline", "recipient": identity.recipient, "identity_file": str(file)}

    def opened(**reference: str) -> Keystore:
        return open_keystore("k", parse_settings("k", {**table, **reference}))

    assert opened(passphrase_file=str(tmp_path / "good")).describe().key_id == age_wrap.key_id(identity.recipient)
    with pytest.raises(KeystoreAccessDenied, match="the passphrase is another one") as caught:
        opened(passphrase_env="WRONG").describe()
    assert "staple" not in caught.value.diagnostics
    with pytest.raises(ConfigurationInvalid, match="MISSING is empty"):
        opened(passphrase_env="MISSING").describe()


def test_without_a_terminal_nobody_is_asked_and_nothing_is_read_from_a_pipe(locked: tuple[AgeIdentity, Path]) -> None:
    identity, file = locked
    script = (
        "from pathlib import Path; from activities.keystores.kinds.offline import *\n"
        f"Offline('k', OfflineSettings(recipient={identity.recipient!r}, identity_file=Path({str(file)!r}))).describe()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input="correct horse\n", capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == 1
    assert "there is no terminal to type the passphrase on" in done.stderr
    assert "Passphrase of" not in done.stdout


def test_an_armoured_file_of_age_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "key.age"
    text = base64.encodebytes(quick_age.encrypt(f"{SECRET}\n".encode(), "p")).decode().replace("\n", "")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    armoured = ["-----BEGIN AGE ENCRYPTED FILE-----", *lines, "-----END AGE ENCRYPTED FILE-----", ""]
    write_private(file, "\n".join(armoured).encode())
    assert read_identity(file, lambda: "p").recipient == RECIPIENT


def test_a_file_that_demands_endless_work_is_refused(locked: tuple[AgeIdentity, Path], tmp_path: Path) -> None:
    data = re.sub(rb"(-> scrypt \S+ )[0-9]+", rb"\g<1>40", locked[1].read_bytes())
    file = tmp_path / "key.age"
    file.write_bytes(data)
    file.chmod(0o600)
    with pytest.raises(KeystoreAccessDenied, match="more work than"):
        read_identity(file, lambda: "correct horse")


def test_a_key_is_never_overwritten(key: OfflineKey) -> None:
    before = key.file.read_bytes()
    with pytest.raises(ConfigurationInvalid, match="exists already"):
        write_identity(key.file, AgeIdentity.generate(), None)
    assert key.file.read_bytes() == before


# --- in a ceremony ---------------------------------------------------------------------------------------------


class OfflineCeremony(Ceremony):
    """A ceremony of five keystores, the last of which is offline."""

    def __init__(self, world: World, key: OfflineKey) -> None:
        super().__init__(world)
        self.key = key
        entries = tuple(
            entry.model_copy(update={"offline": key.age.recipient}) if entry.name == "ks-5" else entry
            for entry in world.roster.keystores
        )
        world.roster = world.roster.model_copy(update={"keystores": entries})
        world.write_roster()

    @property
    def key_id(self) -> str:
        return age_wrap.key_id(self.key.age.recipient)

    def protect_offline(self, key_id: str = "") -> StoredProtection:
        target = self.world.target()
        place = TargetShard(index=5, keystore="ks-5", key_id=key_id or self.key_id, custodians=("erin",))
        plan = self.world.init_plan(target.model_copy(update={"shards": (*target.shards[:4], place)}))
        authority, opened = self.world.authority(plan, NAMES[:3]), self.open(plan, "protect")
        deks = tuple(
            datakey.generate(
                self.world.desk(name),
                GenerateDataKey(keystore=name, index=index, authority=authority, session=self.announce(opened)),
                now(),
            )
            for index, name in enumerate(KEYSTORES[:4], start=1)
        )
        return session.protect(opened, Protect(session="ab" * 16, authority=authority, deks=deks), now())

    def desk(self, keystore: Keystore | None = None) -> CallContext:
        return self.world.desk("ks-5", keystore=keystore or self.key)

    def unwrap(self, stored: StoredProtection, index: int, authority: Authority, announced: Signed) -> DekAnswer:
        if index != 5:
            return super().unwrap(stored, index, authority, announced)
        return datakey.unwrap(self.desk(), self.unwrap_request(stored, authority, announced), now())

    @staticmethod
    def unwrap_request(stored: StoredProtection, authority: Authority, announced: Signed) -> UnwrapDataKey:
        return UnwrapDataKey(
            keystore="ks-5",
            index=5,
            authority=authority,
            session=announced,
            manifest=stored.manifest,
            wrapped_dek=stored.shards[4].wrapped_dek,
        )

    def ask(self, stored: StoredProtection, approvers: tuple[str, ...] = NAMES[2:]) -> UnwrapDataKey:
        """An unwrap as it comes to the custodian."""
        request = self.world.request(stored, PrivateKey().public_key)
        plan = self.world.unseal_plan(stored, request)
        authority = self.world.authority(plan, approvers, self.world.recipient.sign(request))
        return self.unwrap_request(stored, authority, self.announce(self.open(plan, "release")))

    @staticmethod
    def check_request(stored: StoredProtection) -> CheckDataKey:
        return CheckDataKey(
            keystore="ks-5",
            index=5,
            manifest=stored.manifest,
            wrapped_dek=stored.shards[4].wrapped_dek,
            nonce="0f" * 16,
        )


@pytest.fixture
def ceremony(tmp_path: Path, key: OfflineKey) -> OfflineCeremony:
    return OfflineCeremony(World.make(tmp_path), key)


def test_a_masterkey_comes_back_through_an_offline_shard(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    with_it, _ = ceremony.unseal(stored, NAMES[2:], (3, 4, 5))
    without, _ = ceremony.unseal(stored, NAMES[:3], (1, 2, 3))
    assert with_it == without
    assert len(with_it) == 32


def test_the_manifest_says_that_the_shard_is_offline_and_classical(ceremony: OfflineCeremony) -> None:
    shard = manifest_of(ceremony.protect_offline()).shards[4]
    assert (shard.mechanism, shard.binding.key_id, shard.binding.key_version) == ("age-x25519", ceremony.key_id, "")


def test_the_session_wraps_only_for_the_key_that_roster_and_plan_name(ceremony: OfflineCeremony) -> None:
    with pytest.raises(ApprovalInvalid, match="names another key of ks-5"):
        ceremony.protect_offline(key_id=age_wrap.key_id(RECIPIENT))


def test_the_custodian_proves_the_shard_without_releasing_it(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    proof, signer = open_signed(CheckResponse, datakey.check(ceremony.desk(), ceremony.check_request(stored), now()))
    assert signer == ceremony.world.keystores["ks-5"].fingerprint
    assert (proof.key_id, proof.nonce, proof.matches) == (ceremony.key_id, "0f" * 16, True)


def test_the_data_key_is_signed_by_the_keystores_own_identity(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    response, signer = open_signed(DekResponse, datakey.unwrap(ceremony.desk(), ceremony.ask(stored), now()).response)
    assert signer == ceremony.world.keystores["ks-5"].fingerprint
    assert (response.key_id, response.mechanism) == (ceremony.key_id, "age-x25519")


def test_the_custodians_machine_demands_their_own_approval_and_the_quorum(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    with pytest.raises(ApprovalInvalid, match=r"none of the custodians of ks-5 approved \(erin\)"):
        datakey.unwrap(ceremony.desk(), ceremony.ask(stored, NAMES[:3]), now())
    with pytest.raises(ApprovalInvalid, match="3 are needed"):
        datakey.unwrap(ceremony.desk(), ceremony.ask(stored, ("dave", "erin")), now())


def test_the_identity_of_another_custodian_opens_nothing(ceremony: OfflineCeremony, tmp_path: Path) -> None:
    stored, other = ceremony.protect_offline(), OfflineKey(tmp_path, "another")
    mixed = Offline("ks-5", ceremony.key.settings.model_copy(update={"identity_file": other.file}))
    for desk, error in ((ceremony.desk(other), CiphertextInvalid), (ceremony.desk(mixed), ConfigurationInvalid)):
        with pytest.raises(error):
            datakey.check(desk, ceremony.check_request(stored), now())
        with pytest.raises(error):
            datakey.unwrap(desk, ceremony.ask(stored), now())


def test_an_altered_wrapped_dek_is_refused(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    wrapped = bytearray(decode64(stored.shards[4].wrapped_dek))
    wrapped[-1] ^= 1
    changed = {"wrapped_dek": encode64(bytes(wrapped))}
    with pytest.raises(CiphertextInvalid, match="altered or swapped"):
        datakey.check(ceremony.desk(), ceremony.check_request(stored).model_copy(update=changed), now())
    with pytest.raises(CiphertextInvalid, match="altered or swapped"):
        datakey.unwrap(ceremony.desk(), ceremony.ask(stored).model_copy(update=changed), now())


def test_a_wrapped_dek_of_another_context_is_refused_even_under_a_manifest_that_names_it(
    ceremony: OfflineCeremony,
) -> None:
    # The strongroom's identity was stolen: it signs whatever is wanted. The context's hash still lies inside.
    stored = ceremony.protect_offline()
    manifest = manifest_of(stored)
    shards = list(manifest.shards)
    shards[4] = shards[4].model_copy(update={"binding": shards[4].binding.model_copy(update={"x": 6})})
    forged = ceremony.world.strongroom.sign(manifest.model_copy(update={"shards": tuple(shards)}))
    moved = ceremony.check_request(stored).model_copy(update={"manifest": forged})
    with pytest.raises(CiphertextInvalid, match="another context"):
        datakey.check(ceremony.desk(), moved, now())


def test_a_manifest_that_no_strongroom_signed_is_refused(ceremony: OfflineCeremony) -> None:
    stored = ceremony.protect_offline()
    forged = ceremony.world.stranger.sign(manifest_of(stored))
    with pytest.raises(ManifestInvalid):
        datakey.check(ceremony.desk(), ceremony.check_request(stored).model_copy(update={"manifest": forged}), now())
