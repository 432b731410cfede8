"""The embedded stack: everything the product talks to, started on this machine for the demo and the tests."""
