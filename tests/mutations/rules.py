"""The rules, each with the piece of product code that enforces it, and what that piece becomes without it.

`old` is found by its words, whatever the indentation and the breaks of lines, in exactly one place of the product.
A rule that several roles enforce stands here once for each of them: each must notice by itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One rule taken out.

    Attributes:
        harm: what is possible without it, as a sentence.
        old: the code that enforces it.
        new: the code without the rule.
        tests: the selection that must fail, a key of `SELECTIONS`.
        file: part of the path where `old` stands, where the words alone do not say.
    """

    harm: str
    old: str
    new: str
    tests: str
    file: str = ""


SELECTIONS: dict[str, tuple[str, ...]] = {
    "trust": ("tests/contracts",),
    "authority": (
        "tests/contracts/test_authority.py",
        "tests/strongroom/test_session.py",
        "tests/strongroom/test_reshard.py",
        "tests/keystores/test_state_orders.py",
    ),
    "strongroom": ("tests/strongroom/test_session.py", "tests/strongroom/test_reshard.py"),
    "sessions": ("tests/strongroom/test_sessions_of_a_worker.py", "tests/strongroom/test_session.py"),
    "keystores": (
        "tests/keystores/test_state.py",
        "tests/keystores/test_kept_states.py",
        "tests/keystores/test_state_orders.py",
        "tests/strongroom/test_session.py",
        "tests/strongroom/test_reshard.py",
    ),
    "oneshot": ("tests/strongroom/test_oneshot.py",),
    "shamir": ("tests/strongroom/test_shamir.py",),
    "ledger": ("tests/ledger",),
    "bundle": ("tests/bundle",),
    "replay": ("tests/workflows/test_replay.py",),
    "quorum": ("tests/workflows/test_quorum.py", "tests/workflows/test_messages.py"),
    "approvals": ("tests/attacker/test_approvals.py", "tests/attacker/test_reshard.py"),
    "release": ("tests/attacker/test_release.py",),
    "recipient": ("tests/strongroom/test_session.py", "tests/attacker/test_strongroom.py"),
    "roster-memory": ("tests/attacker/test_other_site.py",),
    "hostile": ("tests/workflows/test_hostile_workers.py",),
    "stops": ("tests/workflows/test_messages_of_changes.py",),
    "holder": ("tests/life/test_stop.py",),
    "contribute": ("tests/cli/test_contribution.py",),
}
"""Narrow: what a developer who changed that part would run."""

MUTATIONS: tuple[Mutation, ...] = (
    # --- contracts/trust: time, quorum, custody ----------------------------------------------------------------
    Mutation("what has expired counts", "if now > expires:", "if now > expires + longest:", "authority"),
    Mutation(
        "what is dated in the future counts", "if issued > now + CLOCK_SKEW:", "if issued > now + longest:", "authority"
    ),
    Mutation(
        "a signature is in force for as long as it says",
        "if expires <= issued or expires - issued > longest:",
        "if expires <= issued:",
        "authority",
    ),
    Mutation(
        "an approval of another plan counts",
        "if approval.plan_digest != plan_digest:",
        "if not approval.plan_digest:",
        "authority",
    ),
    Mutation(
        "a custodian signs in another's name",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "approvals",
    ),
    Mutation("a rejection counts as an approval", 'if approval.decision != "approve":', "if False:", "approvals"),
    Mutation(
        "a plan asks for a smaller quorum than the roster",
        "if plan.governance_quorum < governance.quorum:",
        "if plan.governance_quorum < 1:",
        "authority",
    ),
    Mutation(
        "custodians outside the governance quorum count",
        "standing = set(approvers) & set(governance.custodians)",
        "standing = set(approvers)",
        "authority",
    ),
    Mutation(
        "fewer than the quorum suffice",
        'if len(standing) < needed: raise ApprovalInvalid( f"{len(standing)} custodians of the governance quorum '
        "approved, {needed}",
        'if len(standing) < needed - 1: raise ApprovalInvalid( f"{len(standing)} custodians of the governance quorum '
        "approved, {needed}",
        "authority",
    ),
    Mutation(
        "custodians of too few shards release them",
        "if custody and len(released) < manifest.threshold:",
        "if custody and not released:",
        "authority",
    ),
    Mutation(
        "anybody's approval releases any shard",
        "enumerate(custody, start=1) if set(custodians) & set(approvers)]",
        "enumerate(custody, start=1) if approvers]",
        "authority",
    ),
    Mutation(
        "a manifest's quorum ends with a roster that asks for less",
        'if plan.governance_quorum < manifest.governance_quorum: raise AuthorityInvalid("the '
        'plan asks for a smaller quorum than the manifest demands") check_governance(',
        "check_governance(",
        "authority",
    ),
    Mutation(
        "an order's quorum is below its manifest's",
        'if plan.governance_quorum < manifest.governance_quorum: raise AuthorityInvalid("the '
        'plan asks for a smaller quorum than the manifest demands") approvers,',
        "approvers,",
        "keystores",
    ),
    # --- contracts/trust: plans, targets, manifests ------------------------------------------------------------
    Mutation(
        "a threshold below the roster's minimum is planned",
        'if mode == "sss" and m < minimum:',
        'if mode == "sss" and m < 1:',
        "authority",
    ),
    Mutation(
        "two shards lie under one KMS key",
        '_check_distinct([s.key_id for s in target.shards], "KMS key")',
        "pass",
        "trust",
    ),
    Mutation(
        "one custodian stands behind two shards",
        '_check_distinct([name for s in target.shards for name in s.custodians], "custodian")',
        "pass",
        "trust",
    ),
    Mutation(
        "a shard of an sss protection has no custodian",
        'if (mode == "sss") != bool(shard.custodians):',
        "if False:",
        "trust",
    ),
    Mutation(
        "what a revoked strongroom signed is opened",
        "if chain.at(manifest.roster).signer_of(manifest, signer) is None or signer in chain.current.revoked:",
        "if chain.at(manifest.roster).signer_of(manifest, signer) is None:",
        "trust",
    ),
    Mutation(
        "a manifest that no strongroom signed counts",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "trust",
    ),
    Mutation(
        "a manifest below the roster's minimum threshold serves",
        'if manifest.mode == "sss" and manifest.threshold < minimum:',
        'if manifest.mode == "sss" and manifest.threshold < 1:',
        "trust",
    ),
    Mutation("any epoch may be planned", "_check_epoch(plan, plan.target)", "pass", "authority"),
    Mutation(
        "an approved plan opens another manifest",
        "if s is None or described != (plan.master_key, s.manifest, s.epoch, s.mode, s.threshold, s.count):",
        "if s is None:",
        "authority",
    ),
    Mutation(
        "a reshard replaces another protection than it names",
        "if (plan.target.purpose == manifest.purpose) != (plan.target.predecessor == source.digest):",
        "if False:",
        "strongroom",
    ),
    Mutation(
        "a plan under another roster is carried out",
        'if plan.roster != chain.digest: raise AuthorityInvalid( f"the plan was made under '
        "another roster than this host",
        'if False: raise AuthorityInvalid( f"the plan was made under another roster than this host',
        "authority",
    ),
    Mutation(
        "a ceremony's id says another MasterKey or action than its plan",
        'if not plan.ceremony.startswith(f"{plan.master_key}.{plan.action}."):',
        "if False:",
        "trust",
    ),
    Mutation(
        "a plan that is no order orders",
        "if plan.action not in ORDERS or plan.target is not None or plan.recipient is not None:",
        "if False:",
        "keystores",
    ),
    Mutation(
        "a plan of something else releases",
        'if plan.action != "unseal" or plan.source is None or plan.recipient is None or plan.target is not None:',
        "if plan.source is None or plan.recipient is None:",
        "authority",
    ),
    # --- contracts/trust: recipients, sessions, proofs, stops --------------------------------------------------
    Mutation(
        "a recipient gets a MasterKey that it is not enrolled for",
        "if not roster.receives(name, plan.master_key):",
        "if False:",
        "release",
    ),
    Mutation(
        "the plan names another key than the recipient's request",
        "if wanted != planned or named != (request.recipient, request.hpke_key, name):",
        "if wanted != planned:",
        "release",
    ),
    Mutation(
        "a recipient's request is used for something else",
        "if wanted != planned or named != (request.recipient, request.hpke_key, name):",
        "if named != (request.recipient, request.hpke_key, name):",
        "release",
    ),
    Mutation(
        "a request in seal mode lives for days",
        'longest = SEAL_REQUEST_LIFETIME if plan.source.mode == "seal" else MAXIMUM_CEREMONY',
        "longest = MAXIMUM_CEREMONY",
        "release",
    ),
    Mutation(
        "a session that another strongroom signed gets data keys",
        "if session.strongroom != plan.strongroom:",
        "if not session.strongroom:",
        "strongroom",
    ),
    Mutation(
        "a session of another plan or purpose gets data keys",
        "if announced != (purpose, plan.master_key, plan.ceremony, plan.digest, source, plan.roster):",
        "if not announced:",
        "strongroom",
    ),
    Mutation(
        "a keystore's old proof proves another manifest",
        "if (answer.manifest, answer.matches, missing.get(answer.index)) == (manifest_digest, True, answer.keystore):",
        "if (answer.matches, missing.get(answer.index)) == (True, answer.keystore):",
        "keystores",
    ),
    Mutation(
        "anybody proves a keystore's data key",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "keystores",
    ),
    Mutation(
        "some proofs suffice for a commit",
        'if missing: raise ManifestInvalid( f"the protection was not proven',
        'if len(missing) == len(manifest.shards): raise ManifestInvalid( f"the protection was not proven',
        "keystores",
    ),
    Mutation(
        "anybody orders a stop",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "keystores",
    ),
    Mutation("an old stop is sent again", "if now - stop.issued > MAXIMUM_CEREMONY:", "if False:", "keystores"),
    # --- contracts/trust: signatures and rosters ---------------------------------------------------------------
    Mutation(
        "a signature has many encodings",
        "strict = bytes(parsed) == raw and parsed.hash_algo in _HASHES",
        "strict = True",
        "trust",
    ),
    Mutation(
        "a weak RSA key signs",
        "if isinstance(loaded, rsa.RSAPublicKey) and not _MINIMUM_RSA_BITS <= loaded.key_size",
        "if isinstance(loaded, rsa.RSAPublicKey) and not 1 <= loaded.key_size",
        "trust",
    ),
    Mutation("a document has many forms", "if canonical != data:", "if not canonical:", "trust"),
    Mutation(
        "a roster is changed by fewer than its predecessor demands",
        "if len(signers) < before.change.quorum:",
        "if not signers:",
        "trust",
    ),
    Mutation("another genesis is accepted", "elif roster.digest != genesis:", "elif not genesis:", "trust"),
    Mutation("a roster is rolled back", "if versions[-1].number < minimum_number:", "if False:", "trust"),
    Mutation(
        "a version of the chain is left out",
        "if roster.number != place or roster.previous != (digests[-1] if digests else None):",
        "if roster.number != place:",
        "trust",
    ),
    Mutation(
        "a custodian outside the change quorum changes the roster",
        "if signer is not None and signer.name in quorum.custodians:",
        "if signer is not None:",
        "trust",
    ),
    Mutation("a revoked key counts", "return key_fingerprint not in self.revoked", "return True", "trust"),
    Mutation(
        "an approval to import counts for another bundle",
        "if approval.terms != terms:",
        "if approval.terms.created != terms.created:",
        "bundle",
    ),
    Mutation(
        "a bundle lowers the quorum of its own import",
        "max(governance.quorum, quorums.get(entry.name, 1))",
        "quorums.get(entry.name, 1)",
        "bundle",
    ),
    Mutation(
        "a manifest's higher quorum does not hold for an import",
        "max(governance.quorum, quorums.get(entry.name, 1))",
        "governance.quorum",
        "bundle",
    ),
    # --- the strongroom ----------------------------------------------------------------------------------------
    Mutation(
        "the session opens a shard without its custodians",
        "granted.check_custodian(shard) binding, dek, _",
        "binding, dek, _",
        "strongroom",
    ),
    Mutation(
        "the session takes a data key that its worker did not sign",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "strongroom",
    ),
    Mutation(
        "a data key of another session, authority or shard is taken",
        "if said != expected or signed != bound:",
        "if said != expected:",
        "strongroom",
    ),
    Mutation(
        "a data key that was given for another purpose is taken",
        "if said != expected or signed != bound:",
        "if signed != bound:",
        "strongroom",
    ),
    Mutation(
        "the session opens a shard with a data key of another check value",
        "if binding != shard.binding or not envelope.equal(envelope.dek_check_value(dek, binding), shard.check_value):",
        "if binding != shard.binding:",
        "strongroom",
    ),
    Mutation(
        "what recombines to another MasterKey is released",
        "if not envelope.equal(envelope.key_check_value(master_key, manifest.master_key), manifest.kcv):",
        "if not master_key:",
        "strongroom",
    ),
    Mutation(
        "fewer shards than the threshold are recombined",
        "if len(plaintexts) < manifest.threshold:",
        "if len(plaintexts) < 1:",
        "strongroom",
    ),
    Mutation(
        "the same data key counts twice",
        "if index not in rows or index not in described or index in plaintexts:",
        "if index not in rows or index not in described:",
        "strongroom",
    ),
    Mutation(
        "a shard that was not committed to is used",
        "if not envelope.equal(envelope.commitment(plaintext, shard.binding, bytes.fromhex(shard.salt)), "
        "shard.commitment):",
        "if not plaintext:",
        "strongroom",
    ),
    Mutation(
        "shards that do not recombine are stored",
        "_prove_recombination(master_key, plaintexts, target)",
        "pass",
        "strongroom",
        file="protecting",
    ),
    Mutation(
        "ciphertexts that do not open are stored",
        "if envelope.decrypt_shard(nonce, ciphertext, dek, binding) != plaintext:",
        "if not ciphertext:",
        "strongroom",
    ),
    Mutation(
        "a session does something else than it was opened for",
        "if (granted.plan.digest, purpose) != (ours.plan, ours.purpose):",
        "if not purpose:",
        "strongroom",
    ),
    Mutation(
        "a reshard draws a new MasterKey",
        'if granted.plan.action != "init": raise AuthorityInvalid("a new MasterKey',
        'if not granted.plan.action: raise AuthorityInvalid("a new MasterKey',
        "strongroom",
    ),
    Mutation(
        "a session is opened for another strongroom's plan",
        "if plan.strongroom != identity.fingerprint:",
        "if not identity.fingerprint:",
        "sessions",
    ),
    Mutation(
        "a shard is encrypted to another age key than the roster's",
        "if context.key_id != keystore.offline_key_id:",
        "if not context.key_id:",
        "strongroom",
    ),
    Mutation("too many data keys are passed over in silence", "if waiting: raise", "if False: raise", "strongroom"),
    Mutation(
        "a nonce, a shard and its place are not bound together",
        "return nonce, _cipher(dek, binding).encrypt(nonce, shard, binding.associated_data())",
        "return nonce, _cipher(dek, binding).encrypt(nonce, shard, b'')",
        "sessions",
    ),
    Mutation(
        "shares of one secret have equal coefficients",
        'terms = [int.from_bytes(secrets.token_bytes(length), "big") for _ in range(threshold - 1)]',
        "terms = [1 for _ in range(threshold - 1)]",
        "shamir",
    ),
    # --- the recipient -----------------------------------------------------------------------------------------
    Mutation(
        "a recipient asks for another key than the pinned one",
        "if manifest.master_key != master_key or not equal(manifest.kcv, kcv):",
        "if manifest.master_key != master_key:",
        "recipient",
    ),
    Mutation(
        "a recipient takes a delivery that its strongroom did not sign",
        "if delivery.strongroom != request.strongroom:",
        "if not delivery.strongroom:",
        "strongroom",
    ),
    Mutation(
        "a recipient takes a delivery of another request",
        "if said != wanted or delivery.ciphertext_hash != digest(ciphertext):",
        "if delivery.ciphertext_hash != digest(ciphertext):",
        "strongroom",
    ),
    Mutation(
        "a recipient takes another key than the pinned one",
        "if len(master_key) != MASTER_KEY_BYTES or not equal(key_check_value(master_key, request.master_key), kcv):",
        "if len(master_key) != MASTER_KEY_BYTES:",
        "recipient",
    ),
    Mutation(
        "a recipient takes an old delivery",
        "if delivery.time < request.issued - CLOCK_SKEW or now - delivery.time > MAXIMUM_CEREMONY:",
        "if not delivery.time:",
        "recipient",
    ),
    # --- keystore workers --------------------------------------------------------------------------------------
    Mutation(
        "a keystore gives a data key without its own custodian",
        "granted.check_custodian(shard) binding = shard.binding",
        "binding = shard.binding",
        "keystores",
    ),
    Mutation(
        "a keystore serves while it is stopped",
        "call.state.read().check_serving(granted.plan.master_key) shard = _own_shard(",
        "shard = _own_shard(",
        "keystores",
    ),
    Mutation(
        "a data key leaves after a stop was acknowledged",
        "call.state.read().check_serving(granted.plan.master_key) call.state.note_key(granted.manifest)",
        "call.state.note_key(granted.manifest)",
        "keystores",
    ),
    Mutation(
        "a data key leaves after its protection was retired",
        "call.state.note_key(granted.manifest)",
        "pass",
        "keystores",
    ),
    Mutation(
        "a keystore makes data keys while it is stopped",
        "state.check_serving(granted.plan.master_key) known =",
        "known =",
        "keystores",
    ),
    Mutation(
        "a MasterKey that was committed is created again",
        'if granted.plan.action == "init" and known is not None:',
        "if False:",
        "keystores",
    ),
    Mutation(
        "a keystore makes a data key for an epoch that it refuses",
        "if known is not None and target.epoch < known.epochs.get(target.purpose, 1):",
        "if False:",
        "keystores",
    ),
    Mutation(
        "a keystore answers for another's shard",
        "if context.keystore != call.terms.name:",
        "if not context.keystore:",
        "keystores",
    ),
    Mutation(
        "a keystore serves a mode that it is not configured for",
        "if context.mode not in call.terms.modes:",
        "if not call.terms.modes:",
        "keystores",
    ),
    Mutation(
        "a keystore wraps with another key than planned",
        "if wrapped.key.key_id != context.key_id:",
        "if not wrapped.key.key_id:",
        "keystores",
    ),
    Mutation(
        "a keystore gives back another data key than it wrapped",
        "if not equal(dek_check_value(dek, binding), shard.check_value):",
        "if not dek:",
        "keystores",
    ),
    Mutation(
        "an unproven protection retires the one that works",
        "check_proofs(call.chain, manifest, request.manifest.digest, request.proofs)",
        "pass",
        "keystores",
    ),
    Mutation(
        "an order that no quorum gave is carried out",
        "check_governance(chain.current, plan, approvers) return Granted(plan, approvers, "
        "approvals, authority_digest(plan, approvals, None), None, manifest)",
        "return Granted(plan, approvers, approvals, authority_digest(plan, approvals, None), None, manifest)",
        "keystores",
    ),
    Mutation("an older epoch is served", "if manifest.epoch < lowest:", "if False:", "keystores"),
    Mutation("another MasterKey of the same name is served", "if manifest.kcv != known.kcv:", "if False:", "keystores"),
    Mutation(
        "an old stop counts again after its lift",
        'merged = {**told, **known, **{stop: "lifted" for stop, now in told.items() if now == "lifted"}}',
        "merged = {**known, **told}",
        "keystores",
    ),
    Mutation(
        "a retired epoch is served",
        "lowest=manifest.epoch + 1)",
        "lowest=manifest.epoch)",
        "keystores",
    ),
    Mutation(
        "a state that cannot be read is begun anew",
        "except (OSError, ValueError): raise ConfigurationInvalid( f\"the keystore worker's state {self._file} "
        'cannot be read"',
        'except (OSError, ValueError):\n    return WorkerState()\n    raise ConfigurationInvalid(""',
        "keystores",
    ),
    Mutation(
        "what a newer version remembered is lost when an older one writes",
        "class WorkerState(Part):",
        'class WorkerState(Part, extra="ignore"):',
        "keystores",
    ),
    Mutation("a power cut forgets a stop", "os.fsync(directory)", "pass", "keystores"),
    Mutation(
        "a keystore worker forgets the newest roster",
        "state.note_roster(chain.current.number)",
        "pass",
        "roster-memory",
    ),
    # --- one-shot processes ------------------------------------------------------------------------------------
    Mutation("a core dump holds a key", "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", "pass", "oneshot"),
    Mutation(
        "another process of the user reads a key",
        "_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)",
        "_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)",
        "oneshot",
    ),
    Mutation(
        "the text of an unforeseen error gets out",
        'SessionLost(f"a one-shot process failed with {type(error).__name__}")',
        'SessionLost(f"a one-shot process failed with {error}")',
        "oneshot",
    ),
    Mutation(
        "a one-shot process outlives its worker",
        "threading.Thread(target=_exit_with, args=(life,), daemon=True).start()",
        "pass",
        "oneshot",
    ),
    Mutation("a session's key outlives its announcement", "signal.setitimer(signal.ITIMER_REAL,", "max(1,", "sessions"),
    # --- the ledger --------------------------------------------------------------------------------------------
    Mutation(
        "an event of the log is exchanged",
        "if row.previous != last:",
        "if not row.previous:",
        "ledger",
    ),
    Mutation(
        "an event of the log is altered",
        "if row.digest != event_digest(row._asdict()):",
        "if not row.digest:",
        "ledger",
    ),
    Mutation("the end of the log is cut off", "if head.seq > count:", "if False:", "ledger"),
    Mutation(
        "another MasterKey is committed under the name",
        "if master_key is not None and master_key.kcv != record.kcv:",
        "if False:",
        "ledger",
    ),
    Mutation(
        "a commit replaces another protection than planned",
        "if record.predecessor != (replaced.digest if replaced else None):",
        "if False:",
        "ledger",
    ),
    Mutation(
        "an older epoch is committed",
        "if record.epoch <= (highest := _highest_epoch(session, record.master_key)):",
        "if record.epoch <= 0 and (highest := 0) is not None:",
        "ledger",
    ),
    Mutation(
        "the last protection that serves is retired",
        'if action == "retire" and session.scalar(serving) == 1:',
        "if False:",
        "ledger",
    ),
    Mutation("a protection that serves is destroyed", "if row.status != _FROM[action]:", "if False:", "ledger"),
    Mutation(
        "what is needed still is destroyed on schedule",
        "if not _needed(session, row.master_key)]",
        "if True]",
        "ledger",
    ),
    Mutation(
        "an unseal begins while a stop is in force",
        "if in_force and action in _REFUSED_WHILE_STOPPED:",
        "if False:",
        "ledger",
    ),
    Mutation(
        "a stop of something else is recorded",
        "if (stop.master_key, stop.ceremony) != (request.master_key, request.ceremony):",
        "if not stop.ceremony:",
        "ledger",
    ),
    Mutation(
        "a lift lifts another MasterKey's stop",
        "if row.master_key != master_key: raise NotKnown(",
        "if not master_key: raise NotKnown(",
        "ledger",
    ),
    Mutation(
        "another event is written under the key of one that is there",
        "if (found.type, found.master_key, found.body) != (type_, master_key, content):",
        "if not content:",
        "ledger",
    ),
    # --- bundles -----------------------------------------------------------------------------------------------
    Mutation(
        "a bundle's log is altered",
        "if (event.seq, event.previous) != (number, last) or event.digest != event_digest(event.model_dump()):",
        "if (event.seq, event.previous) != (number, last):",
        "bundle",
    ),
    Mutation(
        "a bundle holds a protection that nobody approved",
        "check_protection(manifests[found], past)",
        "chain",
        "bundle",
    ),
    Mutation("a bundle holds a stop that nobody ordered", ".check_stop(past)", ".chain", "bundle"),
    Mutation("a bundle holds an order that nobody gave", ".check_order(event, body)", ".chain", "bundle"),
    Mutation(
        "a bundle that is older than what keystores serve is imported",
        "check_served(verified, served or {})",
        "pass",
        "bundle",
    ),
    Mutation(
        "an older bundle is imported",
        'if have > len(events): raise BundleInvalid( f"the bundle ends at event',
        'if False: raise BundleInvalid( f"the bundle ends at event',
        "bundle",
    ),
    Mutation(
        "another ledger's bundle is imported",
        "if found != events[have - 1].digest:",
        "if not found:",
        "bundle",
    ),
    Mutation(
        "a bundle's ciphertext is not its manifest's",
        "if len(nonce) != _NONCE_BYTES or digest(nonce + ciphertext) != shard.ciphertext_hash:",
        "if len(nonce) != _NONCE_BYTES:",
        "bundle",
    ),
    Mutation(
        "a bundle's wrapped data key is not its manifest's",
        "if digest(wrapped) != binding.wrapped_hash: raise BundleInvalid(",
        "if not wrapped: raise BundleInvalid(",
        "bundle",
    ),
    Mutation(
        "a document counts that another role signed",
        "if not any(version.signer_of(document, key) for version in chain.versions):",
        "if not key:",
        "bundle",
    ),
    Mutation(
        "another protection than the approved one is in a bundle",
        "if not _as_approved(plan, manifest):",
        "if False:",
        "bundle",
    ),
    Mutation(
        "the two rosters need not continue each other",
        "if longer.digests[: len(shorter.digests)] != shorter.digests:",
        "if False:",
        "bundle",
    ),
    # --- workflows ---------------------------------------------------------------------------------------------
    Mutation(
        "an init commits before it is proven",
        "proofs = await self.prove(stored, roster, plan)",
        "proofs = ()",
        "replay",
    ),
    Mutation(
        "a reshard commits before it is proven",
        "return stored, await self.prove(stored, wanted.roster, plan)",
        "return stored, ()",
        "replay",
    ),
    Mutation(
        "an init does not wait for its quorum",
        "await self.ask(Quorum(plan, roster)) stored",
        "stored",
        "replay",
    ),
    Mutation(
        "a keystore is told of a commit before it is one",
        "await call_ledger(names.COMMIT_PROTECTION, commit)",
        "pass",
        "replay",
    ),
    Mutation("somebody who was not asked decides", "if name not in self._asked:", "if not name:", "quorum"),
    Mutation(
        "an expired approval counts in a ceremony",
        'if approval.decision == "approve" and now <= approval.expires',
        'if approval.decision == "approve"',
        "quorum",
    ),
    Mutation(
        "a ceremony goes on without its governance quorum",
        "return max(self._lacking(now)) <= 0",
        "return self._lacking(now)[1] <= 0",
        "quorum",
    ),
    Mutation(
        "an approval after a rejection counts",
        'known[0].decision == "reject" or (known[0].decision == approval.decision',
        "(known[0].decision == approval.decision",
        "quorum",
    ),
    Mutation(
        "a proof that answers another question counts",
        "if said != (index, nonce, stored.manifest.digest, True):",
        "if not said:",
        "hostile",
    ),
    Mutation(
        "an impostor describes a keystore's key",
        "return entry.name if entry is not None and entry.fingerprint == key else None",
        "return entry.name if entry is not None else None",
        "hostile",
    ),
    Mutation(
        "a stop of another MasterKey ends an unseal",
        'if stop.master_key != self.master_key: raise AuthorityInvalid( "the stop is of '
        'another MasterKey", next_step="sign one that names this MasterKey" )',
        "pass",
        "stops",
    ),
    Mutation(
        "a forged stop ends an unseal",
        "stop, who = check_stop(self._roster, signed, self.now())",
        "stop, who = Stop.parse(signed.document.encode()), 'somebody'",
        "stops",
    ),
    Mutation(
        "a recipient's end is believed without its signature",
        "if not roster.receives(recipient, self.master_key) or ours != (ended.ceremony, ended.master_key):",
        "if not recipient:",
        "stops",
    ),
    # --- at a person's machine ---------------------------------------------------------------------------------
    Mutation(
        "a stop from before the release ends a program",
        "if stop.issued < since - CLOCK_SKEW:",
        "if False:",
        "holder",
    ),
    Mutation(
        "a custodian is asked to contribute to another ceremony unseen",
        "if plan is not None and plan.ceremony != self.ceremony:",
        "if plan is not None and not plan.ceremony:",
        "contribute",
    ),
)
