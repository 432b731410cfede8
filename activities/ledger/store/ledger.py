"""The ledger's front: everything that may be read from it and written to it.

Every write happens once, however often it is asked for: activities are repeated after a crash. What
contradicts an earlier write is refused. Nothing here is secret, and nothing here is trusted: readers verify
the manifests they get.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session

from activities.ledger.store import ceremonies, chain, orders, protections, schema, stops
from activities.ledger.store.database import UPGRADE, Database, WriteSession
from workflows.contracts.trust.errors import ConfigurationInvalid

P = ParamSpec("P")
R = TypeVar("R")


def _reads(work: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Ledger, P], R]:
    """A method that does something with one snapshot of the ledger."""

    @wraps(work)
    def method(ledger: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return ledger.read(lambda session: work(session, *args, **kwargs))

    return method


def _writes(work: Callable[Concatenate[WriteSession, P], R]) -> Callable[Concatenate[Ledger, P], R]:
    """A method that does something in one transaction, alone."""

    @wraps(work)
    def method(ledger: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return ledger.write(lambda session: work(session, *args, **kwargs))

    return method


class Ledger(Database):
    """A ledger in SQLite or PostgreSQL. What a method does is said by the function that it is made of.

    Calls block. Threads may share one; processes each make their own (not across a fork). All raise
    SQLAlchemy's `OperationalError` when the database cannot be reached or stays locked: try again.
    Arguments that are not of their record's form raise ValueError.
    """

    open_ceremony = _writes(ceremonies.open_)
    set_plan = _writes(ceremonies.set_plan)
    set_phase = _writes(ceremonies.set_phase)
    close_ceremony = _writes(ceremonies.close)
    end_ceremony = _writes(ceremonies.end)
    ceremony = _reads(ceremonies.get)

    append = _writes(ceremonies.append)
    record = _writes(ceremonies.record)
    note_roster = _writes(ceremonies.note_roster)
    events = _reads(chain.events)
    last_event = _reads(chain.last)
    verify_chain = _reads(chain.verify)
    verified_events = _reads(chain.verified)

    stage = _writes(protections.stage)
    commit = _writes(protections.commit)
    discard_staged = _writes(ceremonies.discard_staged)
    collect_staged = _reads(ceremonies.collect_staged)
    protection = _reads(protections.find)
    master_keys = _reads(protections.master_keys)

    check_order = _reads(orders.check)
    retire = _writes(orders.retire)
    destroy = _writes(orders.destroy)
    destroy_due = _writes(orders.destroy_due)

    order_stop = _writes(stops.order)
    lift_stops = _writes(stops.lift)
    stops_in_force = _reads(stops.in_force)
    hold = _writes(stops.hold)
    releases = _reads(stops.releases)

    # Last, because inside the class they hide the modules of the same names.
    ceremonies = _reads(ceremonies.newest)
    protections = _reads(protections.of)

    def upgrade(self) -> None:
        """Create the ledger, or migrate it to what this code needs. Several may do so at once.

        Raises:
            ConfigurationInvalid: newer code has made of it what this code cannot use, or its folder is not there.
        """
        if self.file is not None:
            try:
                # A copy of the ledger is half of what an attacker needs: for the owner's eyes only.
                os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            except OSError as error:
                raise ConfigurationInvalid(
                    f"cannot open {self.file}: {error.strerror}", next_step="correct ledger.url or make the folder"
                ) from None
        self.define(schema.upgrade)
        self.check()

    def check(self) -> None:
        """Check that the database is a ledger that this code can use: its own, or one that newer code only expanded.

        Raises:
            ConfigurationInvalid: there is none, it is older, or newer code has made of it what this code cannot use.
        """
        ours = schema.needed().revision
        found = self.read(lambda session: schema.found(session.connection()))
        if found is None:
            raise ConfigurationInvalid("the database holds no ledger", next_step=UPGRADE)
        if found.revision < ours:
            raise ConfigurationInvalid(f"the ledger's schema is {found.revision}, not {ours}", next_step=UPGRADE)
        if found.oldest > ours:
            raise ConfigurationInvalid(
                f"the ledger's schema {found.revision} is newer than this program, which has {ours}:"
                f" it needs {found.oldest} or later",
                next_step="install the version of masterkey that migrated it",
            )
