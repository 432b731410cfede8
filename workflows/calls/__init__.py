"""How workflows call keystores, sessions and each other: Temporal's plumbing only."""
