"""One whole life, lived once on SQLite; and ledgers of both kinds to import it into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from activities.ledger.bundle.verify import Verified, verify
from activities.ledger.store.ledger import Ledger
from tests.bundle.life import Life
from tests.ledger.conftest import Shared, postgresql, shared, sqlite, url
from tests.world import World, now

__all__ = ["postgresql", "shared", "sqlite", "url"]


@dataclass(frozen=True)
class Lived:
    """A life that is over: nothing is done to it any more."""

    life: Life
    data: bytes

    @property
    def world(self) -> World:
        """Who lived."""
        return self.life.world

    def verify(self, data: bytes | None = None) -> Verified:
        """Verify its bundle, or another."""
        return verify(self.data if data is None else data, genesis=self.world.roster.digest)


def begin_life(folder: Path) -> Life:
    """A world and an empty ledger."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    made.upgrade()
    return Life(World.make(folder / "world"), made)


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """A whole life."""
    life = begin_life(tmp_path_factory.mktemp("lived"))
    life.whole()
    return Lived(life, life.bundle())


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A life that has not begun."""
    return begin_life(tmp_path)


@pytest.fixture
def ledger(shared: Shared, url: str) -> Ledger:
    """An empty ledger whose clock goes as that of the people does."""
    shared.clock.now = now()
    return shared.ledger
