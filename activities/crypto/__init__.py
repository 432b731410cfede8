"""Pure functions over keys and shares: no I/O."""
