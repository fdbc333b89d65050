"""One SQLite file: durable at every commit, written by one transaction at a time, migrated when it is opened."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import Connection, create_engine, event

from nlp_distill.rundir import disk_errors

BUSY_MS = 30_000
CONNECTIONS = 64
"""As many as threads may ask at once: one that is opened anew costs more than what it is asked."""


class Database:
    """The store's file. `reading()` and `writing()` give a connection inside a transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY_MS / 1000, "check_same_thread": False},
            pool_size=CONNECTIONS,
            pool_use_lifo=True,
        )
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(writes=True)

    def migrate(self) -> Database:
        """Bring the file to this version's tables."""
        with FileLock(self.path.with_name(".migrate.lock")), disk_errors(self.path):
            with self.writing() as connection:
                settings = Config()
                settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
                settings.attributes["connection"] = connection
                command.upgrade(settings, "head")
        return self

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """What was committed when the block began."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writer; durable when the block ends well, nothing otherwise. Raises `DiskFull`."""
        with self._writer.begin() as connection:
            yield connection

    def backup(self, target: Path) -> None:
        """A consistent copy, while others read and write."""
        with (
            contextlib.closing(sqlite3.connect(self.path)) as source,
            contextlib.closing(sqlite3.connect(target)) as to,
        ):
            source.backup(to)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    # Python's own transactions begin late and without a lock; ours are begun below.
    connection.isolation_level = None
    settings = (f"busy_timeout = {BUSY_MS}", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")
    for setting in settings:
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
