"""The quorum: who has approved or rejected a plan, and whether that is enough.

Plain state and rules, no waiting: `workflows.steps.ceremony` waits. Distinct custodians count, never signatures;
a rejection stands for good; an approval counts until it expires.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import datetime

from workflows.contracts.messages.status import SubmitOutcome
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Approval, Plan
from workflows.contracts.trust.quorum import check_approval, required_quorum, shards_released_by
from workflows.contracts.trust.roster import Roster


class Quorum:
    """Decisions about one plan.

    Args:
        plan: what is decided.
        roster: who may decide.
        custody: for each shard to be opened, the names of its custodians; empty when none is.
        threshold: of how many shards custodians must approve; 0 when none is opened.
        excluded: indexes of the shards that cannot be used. The ceremony adds to it as it learns of them, so that
            whatever is asked of the quorum, by a screen, a sender or the wait, knows of the same.
    """

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        custody: Sequence[Sequence[str]] = (),
        threshold: int = 0,
        excluded: Set[int] = frozenset(),
    ) -> None:
        self.plan = plan
        self._plan_digest = plan.digest
        self._roster = roster
        self._custody = custody
        self._threshold = threshold
        self._excluded = excluded
        self._governance = roster.governance_of(plan.master_key).custodians
        self._needed = required_quorum(plan, roster)
        self._decisions: dict[str, tuple[Approval, Signed]] = {}
        self._asked = set(self._governance) | {name for names in custody for name in names}

    def check(self, signed: Signed, now: datetime) -> tuple[Approval, str]:
        """Verify a decision; raises ApprovalInvalid saying what is wrong."""
        approval, name = check_approval(signed, self._plan_digest, self._roster, now)
        if name not in self._asked:
            raise ApprovalInvalid(
                f"{name} is not among the custodians asked for this plan",
                next_step="let one of those decide that `masterkey ceremony show` lists",
                subject=name,
            )
        return approval, name

    def add(self, signed: Signed, now: datetime) -> SubmitOutcome:
        """Count a decision; the same again is harmless. Raises as `check`."""
        approval, name = self.check(signed, now)
        known = self._decisions.get(name)
        duplicate = known is not None and (
            known[0].decision == "reject" or (known[0].decision == approval.decision and known[0].expires >= now)
        )
        if not duplicate:
            self._decisions[name] = (approval, signed)
        return SubmitOutcome(
            custodian=name,
            decision=approval.decision if not duplicate else self._decisions[name][0].decision,
            state="duplicate" if duplicate else "accepted",
            needed=self.needed(now),
        )

    def approvals(self, now: datetime) -> dict[str, Signed]:
        """Approvals in force, by custodian."""
        return {
            name: signed
            for name, (approval, signed) in self._decisions.items()
            if approval.decision == "approve" and now <= approval.expires
        }

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Names of those who approved, expired or not."""
        return tuple(sorted(n for n, (a, _) in self._decisions.items() if a.decision == "approve"))

    @property
    def rejected_by(self) -> tuple[str, ...]:
        """Names of those who refused."""
        return tuple(sorted(n for n, (a, _) in self._decisions.items() if a.decision == "reject"))

    @property
    def opens_shards(self) -> bool:
        """Whether shards are to be opened that have custodians: then only those may be released that they approved."""
        return bool(self._custody)

    def releasable(self, now: datetime) -> list[int]:
        """Indexes of the shards that may be released now and can be used."""
        return [i for i in shards_released_by(self.approvals(now), self._custody) if i not in self._excluded]

    def _lacking(self, now: datetime) -> tuple[int, int]:
        """How many approvals of the governance quorum are missing, and of how many shards; not above 0: none."""
        governance = self._needed - len(set(self.approvals(now)) & set(self._governance))
        return governance, self._threshold - len(self.releasable(now))

    def reached(self, now: datetime) -> bool:
        """Whether the quorum stands, and custodians of enough shards that can be used approved."""
        return max(self._lacking(now)) <= 0

    def unreachable(self) -> bool:
        """Whether so many have refused that the quorum can never stand, with the shards that can be used."""
        rejected = set(self.rejected_by)
        left = [i for i, who in enumerate(self._custody, start=1) if i not in self._excluded and set(who) - rejected]
        return len(set(self._governance) - rejected) < self._needed or len(left) < self._threshold

    def next_expiry(self, now: datetime) -> datetime | None:
        """When the next approval in force expires."""
        ends = [a.expires for a, _ in self._decisions.values() if a.decision == "approve" and a.expires >= now]
        return min(ends) if ends else None

    def missing(self, now: datetime) -> tuple[str, ...]:
        """Names of those who were asked and have not decided, or whose approval expired."""
        return tuple(sorted(self._asked - set(self.approvals(now)) - set(self.rejected_by)))

    def needed(self, now: datetime) -> str:
        """What is still missing, in words; empty when nothing is."""
        parts, (governance, shards) = [], self._lacking(now)
        if governance > 0:
            parts.append(f"{governance} more of the governance quorum of {self._needed}")
        if shards > 0:
            parts.append(f"custodians of {shards} more shards of {self._threshold}")
        return " and ".join(parts)
