"""Both databases, for every test that asks for a `url`, an `empty_url` or a `ledger`.

Migrating takes longer than most tests, so each kind of database has one ledger, which is emptied between
the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql

from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import START, Clock, empty, postgres_server

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@dataclass
class Shared:
    """One kind of database: how to make an empty one, and the one with a ledger."""

    create: Callable[[], str]
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.url = self.create()
        self.ledger = Ledger(self.url, clock=self.clock)
        self.ledger.upgrade()


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """SQLite: files."""
    folder, numbers = tmp_path_factory.mktemp("ledgers"), itertools.count(1)
    shared = Shared(lambda: f"sqlite:///{folder / f'ledger-{next(numbers)}.db'}")
    yield shared
    shared.ledger.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Shared]:
    """PostgreSQL: databases of one server."""
    with postgres_server() as server:
        numbers = itertools.count(1)

        def create() -> str:
            name = f"ledger_{next(numbers)}"
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            return str(server.get_uri(database=name, driver="psycopg"))

        shared = Shared(create)
        yield shared
        shared.ledger.close()


@pytest.fixture(params=KINDS)
def shared(request: pytest.FixtureRequest) -> Shared:
    """Each of the two kinds of database."""
    made: Shared = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def empty_url(shared: Shared) -> str:
    """A database without a ledger."""
    return shared.create()


@pytest.fixture
def url(shared: Shared) -> str:
    """A database with an empty ledger."""
    empty(shared.url)
    shared.clock.now = START
    return shared.url


@pytest.fixture
def ledger(shared: Shared, url: str) -> Ledger:
    """An empty ledger."""
    return shared.ledger


@pytest.fixture
def clock(shared: Shared, url: str) -> Clock:
    """The ledger's clock."""
    return shared.clock
