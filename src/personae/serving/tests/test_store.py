"""The same tests in SQLite and PostgreSQL."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from personae.people.persona import Persona
from personae.serving.store import PersonaStore

_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
Open = Callable[..., PersonaStore]


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, Path]]:
    """URL and data folder of a PostgreSQL server of our own."""
    if not _POSTGRES:
        pytest.skip("PostgreSQL is not installed; run: apt-get install postgresql")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="personae-pg-"))
    who = {}
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "nobody")
        who = {"user": "nobody"}

    def run(program: str, *args: str) -> None:
        command = [str(_POSTGRES[-1] / program), "-D", str(folder / "data"), *args]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=120, **who)  # type: ignore[call-overload]

    run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -F -c listen_addresses=''", "start")
    yield f"postgresql://postgres@/postgres?host={folder}", folder / "data"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.program)])
def database(request, tmp_path) -> tuple[str, Path]:
    """URL of an empty database, and the folder with its files."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/personas.sqlite", tmp_path
    url, folder = request.getfixturevalue("postgres")
    with sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS personas"))
    return url, folder


@pytest.fixture
def opened(database) -> Iterator[Open]:
    stores: list[PersonaStore] = []

    def opened(model: str = "m") -> PersonaStore:
        stores.append(PersonaStore(database[0], model))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def somebody(seed: int = 0, label: str = "ä 'quoted' \"name\"; DROP TABLE personas") -> Persona:
    vector = np.random.default_rng(seed).normal(size=8)
    return Persona("new person", vector, np.eye(8), 8.0, {"kind": "fold-in", "answers": 3}, label)


def test_what_was_added_is_found_by_another_server(opened):
    me = somebody()
    id = opened().add(me)
    stored = opened().get(id)
    np.testing.assert_array_equal(stored.persona.vector, me.vector)
    assert (stored.persona.name, stored.persona.label, stored.persona.origin) == (id, me.label, me.origin)
    assert 0 <= time.time() - stored.created < 600
    assert opened().get("persona-" + 32 * "0") is None


def test_pages_in_the_order_in_which_they_were_made(opened):
    store = opened()
    ids = [store.add(somebody(i)) for i in range(7)]
    found: list[str] = []
    while page := store.page(3, found[-1] if found else None):
        found += [stored.persona.name for stored in page]
    assert found == ids
    assert store.page(3, "persona-unknown") is None
    assert store.delete(ids[3])
    assert [s.persona.name for s in store.page(9)] == ids[:3] + ids[4:]


def test_owners_and_models_do_not_see_each_other(opened):
    id = opened("m").add(somebody(), owner="ann")
    for store, owner in ((opened("m"), "bob"), (opened("m"), ""), (opened("other"), "ann")):
        assert store.get(id, owner) is None
        assert store.page(9, None, owner) == []
        assert store.delete(id, owner) is False
    assert opened("m").delete(id, "ann") is True
    assert opened("m").delete(id, "ann") is False


def test_several_servers_write_at_once(opened):
    stores = [opened() for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: stores[i % 4].add(somebody(i)), range(40)))
    assert len(set(ids)) == 40
    assert {s.persona.name for s in stores[0].page(100)} == set(ids)


def on_disk(folder: Path, words: bytes) -> bool:
    return any(
        words in path.read_bytes() for path in folder.rglob("*") if path.is_file() and "pg_wal" not in path.parts
    )


def test_a_deleted_persona_is_gone_from_disk(opened, database, monkeypatch):
    url, folder = database
    store = opened()
    names = random.Random(53)  # with which SQLite, if it does not write the file anew, leaves a copy
    monkeypatch.setattr("personae.serving.store.secrets.token_hex", lambda n: names.randbytes(n).hex())
    random.seed(0)
    people = {store.add(somebody(i, f"label {i:05d} " + "x" * random.randint(0, 900))): i for i in range(120)}

    def traces(id: str) -> list[bytes]:
        number = repr(float(somebody(people[id]).vector[2]))
        return [number.encode(), f"label {people[id]:05d}".encode(), id.encode()]

    def settle() -> None:
        if url.startswith("postgresql"):
            with sa.create_engine(store.engine.url).connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("CHECKPOINT"))

    settle()
    assert all(on_disk(folder, trace) for id in people for trace in traces(id))
    gone = random.sample(sorted(people), 80 if url.startswith("sqlite") else 10)
    for id in gone:
        assert store.delete(id)
    settle()
    assert not any(on_disk(folder, trace) for id in gone for trace in traces(id))
    assert {s.persona.name for s in store.page(200)} == set(people) - set(gone)


def test_only_its_owner_reads_the_file(tmp_path):
    PersonaStore(f"sqlite:///{tmp_path}/personas.sqlite", "m").close()
    assert (tmp_path / "personas.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_commit_is_synced(tmp_path):
    store = PersonaStore(f"sqlite:///{tmp_path}/personas.sqlite", "m")
    with store.engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 3  # EXTRA
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "delete"
        assert connection.execute(sa.text("PRAGMA secure_delete")).scalar() == 1
    store.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("personas.sqlite", "write sqlite:///personas.sqlite"),
        ("nosql://somewhere/x", "write sqlite:///personas.sqlite"),
        ("sqlite://", "must be a file"),
        ("sqlite:////nowhere/personas.sqlite", "there is no folder /nowhere"),
        ("postgresql://ann:password@127.0.0.1:1/x", "cannot be opened"),
    ],
)
def test_a_store_that_cannot_be_opened_says_why(url, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        PersonaStore(url, "m")
    assert "password" not in str(error.value)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path):
    file = tmp_path / "some.csv"
    file.write_text("respondent,tea\n" * 99)
    with pytest.raises(ValueError, match=r"the store .*some\.csv cannot be opened: file is not a database"):
        PersonaStore(f"sqlite:///{file}", "m")
    assert file.read_text() == "respondent,tea\n" * 99
