"""Processes: the worker roles, the command line, configuration and the embedded stack."""
