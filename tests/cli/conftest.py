"""Fixtures: a whole life in a ledger, shared with the tests of bundles."""

from __future__ import annotations

from tests.bundle.conftest import lived

__all__ = ["lived"]
