"""An installation that may lose everything: eight keystores, so that there is something to recover into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Installation, run_installation
from tests.driving.site import SharedTemporal


@pytest.fixture(scope="package")
def losing(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> Iterator[Installation]:
    """Tests take keys, the database or Temporal away; each makes its own MasterKeys over keystores that are whole."""
    found = run_installation(tmp_path_factory.mktemp("losing"), temporal, count=8)
    yield found
    found.stack.stop()
