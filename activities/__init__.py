"""Everything with an effect: the strongroom, the keystores and the ledger."""
