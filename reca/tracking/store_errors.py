"""What can go wrong with MLflow's store, in words: a broken, missing, full or read-only database, an absent server."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reca.runtime.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(UserError):
    """MLflow's database, artifacts or server cannot be used."""


@contextmanager
def explained(database: Path | None, uri: str) -> Iterator[None]:
    """Turn an error of the store into one message that names the file and the way out; all others pass.

    Raises:
        StoreError: The database is broken, full, read-only, of another version, or the server does not answer.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow wraps SQLAlchemy wraps sqlite3: only the words are the same
        message = _message(error, database, uri)
        if message is None:
            raise
        raise StoreError(message) from error


def is_absent(database: Path) -> bool:
    """Whether there is no database yet; an empty file is none."""
    return not database.exists() or (database.is_file() and database.stat().st_size == 0)


def check_database(database: Path | None) -> None:
    """Look at the SQLite file before MLflow does; nothing to say about a server or a file that is not there yet.

    Raises:
        StoreError: The file is broken or not a database of MLflow.
    """
    if database is None or is_absent(database):
        return
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise StoreError(_broken(database, str(error))) from None
    if answer != "ok":
        raise StoreError(_broken(database, answer))
    if "alembic_version" not in tables or "runs" not in tables:
        raise StoreError(_broken(database, "it is no database of MLflow"))


def _message(error: Exception, database: Path | None, uri: str) -> str | None:
    text = _chain(error)
    place = str(database) if database else uri.rsplit("@", 1)[-1]
    number = _errno(error)
    if any(words in text for words in ("malformed", "not a database", "file is encrypted")) and database:
        return _broken(database, "its pages are damaged")
    if number in FULL or "is full" in text or "No space left" in text:
        return f"the disk of {_file(error) or place} is full; make room, then run the same command again"
    if number in CLOSED or "readonly database" in text or "Read-only file system" in text:
        return f"{_file(error) or place} is read-only; give write permission, or set tracking.uri to another place"
    if "unable to open database file" in text:
        return f"{place} cannot be opened: its folder is missing or closed to this user"
    if "disk I/O error" in text:
        return f"{place} cannot be read or written (disk I/O error): is its disk full or failing?"
    if "database is locked" in text:
        return f"{place} is held by another program; end it (an MLflow UI, a database browser), then try again"
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return (
            f"{place} was written by another version of MLflow; copy it, then run "
            f"`python -m mlflow db upgrade sqlite:///{place}`, or install the version that wrote it"
        )
    if database is None and ("Max retries exceeded" in text or "API request to" in text):
        return f"the MLflow server at {place} does not answer; start it, or set tracking.uri (null: a local file)"
    return None


def _broken(database: Path, problem: str) -> str:
    return (
        f"{database} is broken ({problem}). Put a copy of it back, or move it aside and start anew: "
        f"`mv {database} {database}.broken`. Models and results in outputs/ and in DVC are not touched; "
        "the next `reca run` registers the current one again"
    )


def _chain(error: BaseException | None) -> str:
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(words)


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*FULL, *CLOSED):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _file(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.filename:
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None
