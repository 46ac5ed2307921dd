"""One SQLite file that can be rebuilt: a damaged one is kept under another name and replaced."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pfms.clock import utc_now
from pfms.storage.disk import network_storage

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOCK_SECONDS = 60  # for which another program, such as a person's sqlite3, may hold the file
_READ_LOCK_SECONDS = 1  # the same for a reader, whose caller had rather hear that than wait
_MADE_BY_SQLITE = ("-wal", "-shm", "-journal")


class Damaged(sqlite3.DatabaseError):
    """SQLite can open the file, but its content cannot be used."""


class _Connected:
    """A file and its connection."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


class Database(_Connected):
    """The file and its connection, which belongs to the thread that calls first."""

    def __init__(self, file: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
        """Nothing is opened before the first call of `run`.

        Args:
            file: Created if it is missing.
            prepare: Called first with each new connection, to create the tables and fill them;
                raises `Damaged` if it cannot.
        """
        super().__init__(file)
        self._prepare = prepare

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection; if the file is damaged, once more with a new file.

        Raises:
            sqlite3.Error: The file is locked, full, not writable, or damaged twice in a row.
            OSError: It cannot be created or renamed.
        """
        try:
            return work(self._opened())
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
        return work(self._opened())

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            # SQLite's own mode, 0644, would lock out a container's next random user ID.
            self._file.touch(0o660)
            connection = sqlite3.connect(self._file, timeout=_LOCK_SECONDS, isolation_level=None)
            try:
                self._set_up(connection)
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = _text
        # SQLite's write-ahead log needs memory shared between processes, hence a local disk.
        journal = "WAL"
        if storage := network_storage(self._file):
            log.warning("%s is slower on network storage (%s)", self._file.name, storage)
            journal = "TRUNCATE"
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=NORMAL")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise Damaged("its pages are inconsistent")

    def _set_aside(self, damage: sqlite3.DatabaseError) -> None:
        self.close()
        name = self._file.name
        kept = self._file.with_name(f"{name}.damaged-{utc_now():%Y%m%dT%H%M%S.%fZ}")
        log.warning("%s cannot be used (%s): kept as %s and rebuilt", name, damage, kept.name)
        with suppress(FileNotFoundError):
            self._file.rename(kept)
        for suffix in _MADE_BY_SQLITE:
            self._file.with_name(name + suffix).unlink(missing_ok=True)


class Reader(_Connected):
    """A connection that only reads, beside that of a `Database`, for a thread of its own.

    In the write-ahead log a reader waits for no writer, neither ours nor another program.
    """

    def __init__(self, file: Path) -> None:
        """Nothing is opened before the first call of `run`."""
        super().__init__(file)
        self._inode: int | None = None

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection.

        Raises:
            sqlite3.Error: The file is missing, locked, damaged, or its tables are still being made.
        """
        return work(self._opened())

    def _opened(self) -> sqlite3.Connection:
        try:
            inode = self._file.stat().st_ino
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from None
        if self._connection is None or inode != self._inode:  # it was set aside and made anew
            self.close()
            self._connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=_READ_LOCK_SECONDS,
                isolation_level=None,
            )
            self._connection.text_factory = _text
            self._inode = inode
        return self._connection


def _text(raw: bytes) -> str:
    """Text that is not UTF-8 must only make its own row unreadable."""
    return raw.decode(errors="surrogateescape")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything that is written within, or on an error nothing."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # SQLite would not wait for a lock taken later
        yield


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only add detail
    return isinstance(error, Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
