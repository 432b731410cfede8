"""Histories, code and event log compared."""
