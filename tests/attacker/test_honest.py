"""What the attacks are compared with: the same tools, used honestly, get the MasterKey."""

from __future__ import annotations

import asyncio

from activities.crypto.hpke import PrivateKey
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People
from workflows.contracts.messages.protection import StoredProtection


async def test_the_honest_ceremonies_release_both_masterkeys(
    ceremonies: Ceremonies, sss: StoredProtection, seal: StoredProtection
) -> None:
    first, result = await ceremonies.unseal(sss, QUORUM)
    second, _ = await ceremonies.unseal(seal)
    assert (len(first), len(second)) == (32, 32)
    assert first != second
    assert result.approved_by == QUORUM


async def test_with_real_approvals_even_the_attacker_can_only_deliver_to_the_recipient(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection
) -> None:
    # Every call past the workflow and the ledger; this is the honest twin of the attacks in this folder.
    key = PrivateKey()
    request = people.wish(sss, key.public_key)
    plan = people.release_plan(sss, request)
    authority = people.authority(plan, QUORUM, people.recipient.sign(request))
    opened = await attacker.open(plan, "release")
    deks = await asyncio.gather(*(attacker.unwrap(sss, index, authority, opened.announcement) for index in (1, 3, 4)))
    delivered = await attacker.release(opened, authority, sss, deks)
    received = ceremonies.receive(delivered, request, key, sss)
    assert received == (await ceremonies.unseal(sss, QUORUM))[0]
