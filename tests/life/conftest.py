"""An installation whose keystores may be lost for good: eight keys, so that there is something to recover into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Installation, start_installation


@pytest.fixture(scope="package")
def losing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Tests take keys of it away; each makes its own MasterKeys over keystores that it says are whole."""
    found = start_installation(tmp_path_factory.mktemp("losing"), count=8)
    yield found
    found.stack.stop()
