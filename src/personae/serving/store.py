"""`PersonaStore`: personas made while the server runs, in SQLite or PostgreSQL."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError

from personae.people.persona import Persona

PREFIX = "persona-"
_BUSY = 30  # seconds to wait for another process that writes

_table = sa.Table(
    "personas",
    sa.MetaData(),
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("persona", sa.Text, nullable=False),
    sa.Index("personas_of", "model", "owner", "number"),
)


class Stored(NamedTuple):
    """A persona and when it was made (Unix time)."""

    persona: Persona
    created: int


class PersonaStore:
    """Personas by id, each visible to the API key that made it and to bundles with the same opinion model.

    Parameters
    ----------
    url : str
        Of SQLAlchemy: ``sqlite:///personas.sqlite``, ``postgresql+psycopg://user@host/database``.
    model : str
        Fingerprint of the opinion model whose vectors these are.

    Raises
    ------
    ValueError
        The URL is malformed or the database cannot be reached.

    Notes
    -----
    What `add` returned is on disk: it is committed with fsync (SQLite: rollback journal and ``synchronous=EXTRA``).
    What `delete` was asked for is gone from disk when it returns: the table is written anew, since both databases leave
    copies of rows where they moved them (SQLite even with ``secure_delete``), and there is no write-ahead log that
    could hold one. PostgreSQL's own log and backups keep what they keep until they are recycled.

    Examples
    --------
    >>> import tempfile
    >>> store = PersonaStore(f"sqlite:///{tempfile.mkdtemp()}/personas.sqlite", model="m")
    >>> id = store.add(Persona("me", [0.0, 1.0], [[1, 0], [0, 1]], 2.0))
    >>> store.get(id).persona.vector.tolist(), store.delete(id), store.get(id)
    ([0.0, 1.0], True, None)
    """

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        try:
            parsed = sa.make_url(url)
            postgres = parsed.drivername in ("postgresql", "postgres")
            self.engine = sa.create_engine(
                parsed.set(drivername="postgresql+psycopg") if postgres else parsed, pool_pre_ping=True
            )
        except ArgumentError:  # its message would repeat the URL, and with it a password
            raise ValueError(
                "the store's URL is malformed; write sqlite:///personas.sqlite or postgresql://user@host/database"
            ) from None
        except ImportError as error:
            raise ValueError(f"this store needs {error.name}; run: pip install 'psycopg[binary]'") from None
        if self.engine.dialect.name == "sqlite":
            _make_private(parsed.database)
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
        try:
            _table.metadata.create_all(self.engine)
        except DatabaseError as error:  # SQLite says of a file that is none that it is no database
            reason = " ".join(str(error.orig).split())
            raise ValueError(f"the store {parsed.render_as_string()} cannot be opened: {reason}") from None

    def add(self, persona: Persona, owner: str = "") -> str:
        """Remember a persona under a new name, its id, which nobody can guess."""
        name = PREFIX + secrets.token_hex(16)
        named = Persona(name, persona.vector, persona.covariance, persona.prior_variance, persona.origin, persona.label)
        row = {
            "id": name,
            "owner": owner,
            "model": self.model,
            "created": int(time.time()),
            "persona": named.to_json(),
        }
        with self.engine.begin() as connection:
            connection.execute(_table.insert().values(row))
        return name

    def get(self, id: str, owner: str = "") -> Stored | None:
        """One persona; None if there is none, or it is somebody else's."""
        with self.engine.connect() as connection:
            row = connection.execute(self._mine(owner).where(_table.c.id == id)).one_or_none()
        return None if row is None else _stored(row)

    def page(self, limit: int, after: str | None = None, owner: str = "") -> list[Stored] | None:
        """The next personas in the order in which they were made; None if ``after`` is unknown."""
        with self.engine.connect() as connection:
            start = 0
            if after is not None:
                found = connection.execute(self._mine(owner).where(_table.c.id == after)).one_or_none()
                if found is None:
                    return None
                start = found.number
            wanted = self._mine(owner).where(_table.c.number > start).order_by(_table.c.number).limit(limit)
            return [_stored(row) for row in connection.execute(wanted)]

    def delete(self, id: str, owner: str = "") -> bool:
        """Forget a persona, on disk too; false if there is none, or it is somebody else's."""
        mine = (_table.c.id == id) & (_table.c.owner == owner) & (_table.c.model == self.model)
        with self.engine.begin() as connection:
            gone = connection.execute(_table.delete().where(mine)).rowcount
        if gone:  # copies are left where rows were moved from page to page
            everything = "VACUUM (FULL) personas" if self.engine.dialect.name == "postgresql" else "VACUUM"
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text(everything))
        return bool(gone)

    def _mine(self, owner: str) -> sa.Select[Any]:
        return sa.select(_table).where(_table.c.model == self.model, _table.c.owner == owner)

    def close(self) -> None:
        self.engine.dispose()


def _stored(row: Any) -> Stored:
    return Stored(Persona.from_json(row.persona), row.created)


def _make_private(database: str | None) -> None:
    """Nobody else on the machine reads the file."""
    if not database or database == ":memory:":
        raise ValueError("the store must be a file, sqlite:///personas.sqlite: one in memory would lose personas")
    path = Path(database)
    if not path.parent.is_dir():
        raise ValueError(f"the store {path} cannot be opened: there is no folder {path.parent}")
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={1000 * _BUSY}", "journal_mode=DELETE", "synchronous=EXTRA", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
