"""The files of a bundle: a manifest with the hash of each, and a folder that is replaced as a whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import personae

if TYPE_CHECKING:
    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel

KIND = "personae bundle"
SCHEMA = 1
PARTS = ("people", "everybody", "cohorts", "steerer")
MANIFEST = "manifest.json"


class BundleError(ValueError):
    """A folder that cannot be opened or written as a bundle; the message says why and what to do."""


class Opened(Protocol):
    """A `Bundle` as those see it whom it calls: what is written about it, and where."""

    manifest: dict[str, Any]

    @property
    def people(self) -> OpinionModel: ...

    @property
    def cohorts(self) -> Cohorts: ...

    def __contains__(self, part: str) -> bool: ...

    def part(self, part: str) -> Path: ...


def check_replaceable(folder: Path) -> None:
    """Raise `BundleError` if the folder holds something else than a bundle, which writing would destroy."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not _is_bundle(_load_json(folder / MANIFEST)):
        raise BundleError(f"{folder} exists and is not a bundle, so it is not replaced; give another folder")
    kept = sorted(p.name for p in folder.iterdir() if p.name not in (MANIFEST, *PARTS) and p.name[0] != ".")
    if kept:
        raise BundleError(f"the bundle {folder} holds {kept[0]}, which is not its own and would be lost; move it away")


def replace(folder: Path, parts: Mapping[str, Callable[[Path], object]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write a new bundle, in place of one that may be there, and return its manifest.

    Parameters
    ----------
    parts : mapping of part to callable
        Each writes into the folder that it is given.
    about : mapping
        What the manifest is to say besides.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _new_folder(folder) as new:
        for part, save in parts.items():
            (new / part).mkdir()
            save(new / part)
        manifest = {
            "kind": KIND,
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "personae": personae.__version__,
            **about,
            "files": {name: _facts_of(new / name) for name in _files_in(new)},
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        for path in [*new.rglob("*"), new]:
            _fsync(path)
        _swap(new, folder)
    return read_manifest(folder)


# the manifest ----------------------------------------------------------------------------------------------------
def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_bundle(manifest: Any) -> bool:
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


def read_manifest(folder: Path) -> dict[str, Any]:
    place = location(folder)
    if not place.exists():
        raise BundleError(f"there is no bundle {folder}; make one with: personae fit SURVEY --out {folder.name}")
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with: personae fit")
    manifest = _load_json(place / MANIFEST)
    if not _is_bundle(manifest):
        raise BundleError(f"the {MANIFEST} of {folder} is not that of a bundle; restore it or fit again")
    schema = manifest.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BundleError(
            f"the bundle {folder} was written by a newer personae (schema {schema}, this one reads {SCHEMA}); "
            "upgrade personae or fit again"
        )
    if not isinstance(manifest.get("files"), dict) or not {"data", "seeds", "steerer"} <= set(manifest):
        raise BundleError(f"the {MANIFEST} of {folder} is incomplete; restore it or fit again")
    return manifest


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after checking it and the hash of every file; raises `BundleError`."""
    manifest = read_manifest(folder)
    _check_files(folder, manifest["files"])
    return manifest


def _check_files(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> None:
    place = location(folder)
    found = set(_files_in(place))  # the manifest's names are only compared, so none of them leads out of the folder
    if missing := sorted(set(listed) - found):
        raise BundleError(f"the bundle {folder} lacks {missing[0]}; restore it from a copy or fit again")
    if foreign := sorted(found - set(listed)):
        raise BundleError(f"the bundle {folder} holds {foreign[0]}, which is not its own; remove that file")
    for name, facts in listed.items():
        if _facts_of(place / name) != facts:
            raise BundleError(
                f"{name} in the bundle {folder} is not the file that was written (its hash differs); "
                "restore it from a copy or fit again"
            )


def _files_in(folder: Path) -> list[str]:
    """Names of the files of the parts, without those that file browsers hide there."""
    paths = (path for part in PARTS for path in (folder / part).rglob("*"))
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file() and path.name[0] != ".")


def _facts_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# the disk --------------------------------------------------------------------------------------------------------
@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside, locked while it is filled; removed if that fails."""
    new = _beside(folder, "new")
    new.mkdir(exist_ok=True)
    lock = os.open(new, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BundleError(f"another process is writing {folder}; wait for it or give another folder") from None
        for left in new.iterdir():  # by a writer that was killed: its lock is gone
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield new
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` at the place of ``folder``; at every moment one whole bundle is there or, as "old", beside."""
    old = _beside(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def location(folder: Path) -> Path:
    """Where the bundle is: beside, if a writer died between its two renames."""
    old = _beside(folder, "old")
    return old if not folder.exists() and old.exists() else folder


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def linker(folder: Path) -> Callable[[Path], object]:
    """Writes a part that is a folder already."""
    return lambda target: shutil.copytree(folder, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
