"""The ledger: the database of manifests, shards and ceremonies, and a hash-chained record of events."""

from activities.ledger.chain import Head
from activities.ledger.records import (
    CeremonyRecord,
    EventRecord,
    MasterKeyRecord,
    ProtectionRecord,
    ShardRecord,
)
from activities.ledger.store import Ledger

__all__ = [
    "CeremonyRecord",
    "EventRecord",
    "Head",
    "Ledger",
    "MasterKeyRecord",
    "ProtectionRecord",
    "ShardRecord",
]
