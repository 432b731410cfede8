"""Everything on one machine: the embedded stack, the demo, break glass."""
