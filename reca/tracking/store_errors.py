"""Readable errors of MLflow's store: a broken, missing, full or read-only database, a server that does not answer."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from reca.runtime.errors import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
ANSWER_SECONDS = 5
"""How long a server may take to answer."""


class StoreError(UserError):
    """MLflow's database, artifacts or server cannot be used."""


@contextmanager
def friendly_store_errors(database: Path | None, uri: str) -> Iterator[None]:
    """Turn an error of the store into one message that names the file and the remedy; other errors pass through.

    Raises:
        StoreError: The database is broken, full, read-only, of another version, or the server does not answer.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow wraps SQLAlchemy wraps sqlite3: only the message survives
        message = _message(error, database, uri)
        if message is None:
            raise
        raise StoreError(message) from error


def is_database(uri: str) -> bool:
    """Return whether a store is a database that MLflow opens itself, not a server of its own or a folder."""
    return urlsplit(uri).scheme.split("+")[0] in DATABASE_ENGINES


def is_absent(database: Path) -> bool:
    """Return whether there is no database yet; an empty file does not count as one."""
    return not database.exists() or (database.is_file() and database.stat().st_size == 0)


def check_store(database: Path | None, uri: str) -> None:
    """Check the SQLite file, or that the server answers, before MLflow opens it and retries for minutes.

    Raises:
        StoreError: The file is broken or not a database of MLflow, or the server does not answer.
    """
    if database is None:
        _check_server(uri)
    elif not is_absent(database):
        _check_database(database)


def _check_server(uri: str) -> None:
    try:
        if uri.startswith(("http://", "https://")):
            httpx.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
        elif is_database(uri):
            create_engine(uri, poolclass=NullPool, connect_args={"connect_timeout": ANSWER_SECONDS}).connect().close()
    except ModuleNotFoundError as error:
        raise StoreError(f"the database of MLflow needs a driver ({error}); `pip install 'reca[postgres]'`") from None
    except (httpx.HTTPError, SQLAlchemyError) as error:
        raise StoreError(f"{_no_answer(uri)} ({str(error).splitlines()[0]})") from None


def _check_database(database: Path) -> None:
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
        raise StoreError(_broken(database, "it is not a database of MLflow"))


def _message(error: Exception, database: Path | None, uri: str) -> str | None:
    causes = list(_causes(error))
    text = "\n".join(map(str, causes))
    os_errors = [cause for cause in causes if isinstance(cause, OSError)]
    numbers = {cause.errno for cause in os_errors}
    location = str(database) if database else uri.rsplit("@", 1)[-1]
    file = next((str(cause.filename) for cause in os_errors if cause.filename), location)
    if any(words in text for words in ("malformed", "not a database", "file is encrypted")) and database:
        return _broken(database, "its pages are damaged")
    if numbers & DISK_FULL or "is full" in text or "No space left" in text:
        return f"the disk of {file} is full; make room, then run the same command again"
    if numbers & READ_ONLY or "readonly database" in text or "Read-only file system" in text:
        return f"{file} is read-only; give write permission, or set tracking.uri to another location"
    if "unable to open database file" in text:
        return f"{location} cannot be opened: its folder is missing or closed to this user"
    if "disk I/O error" in text:
        return f"{location} cannot be read or written (disk I/O error): is its disk full or failing?"
    if "database is locked" in text:
        return f"{location} is held by another program; end it (an MLflow UI, a database browser), then try again"
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return (
            f"{location} was written by another version of MLflow; copy it, then run "
            f"`python -m mlflow db upgrade sqlite:///{location}`, or install the version that wrote it"
        )
    if database is None and ("Max retries exceeded" in text or "API request to" in text):
        return _no_answer(uri)
    return None


def _no_answer(uri: str) -> str:
    location = uri.rsplit("@", 1)[-1]
    return f"the MLflow server at {location} does not answer; start it, or set tracking.uri (null: a local file)"


def _broken(database: Path, problem: str) -> str:
    return (
        f"{database} is broken ({problem}). Put a copy of it back, or move it aside and start with a new one: "
        f"`mv {database} {database}.broken`. Models and results in outputs/ and in DVC are not touched; "
        "the next `reca run` registers the current one again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
