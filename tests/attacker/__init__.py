"""The orchestrator as attacker: it controls Temporal and the ledger, and gets no key and passes off none."""
