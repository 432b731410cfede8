"""The event log: what an event is, what it changes, and what it says."""
