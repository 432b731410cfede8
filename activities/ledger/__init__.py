"""The ledger: the database of manifests, shards and ceremonies, and a hash-chained record of events."""
