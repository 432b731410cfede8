"""The whole ledger as one portable file."""
