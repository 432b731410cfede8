"""What the ledger promises, proven on SQLite and on PostgreSQL."""
