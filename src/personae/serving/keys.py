"""`Keys`: who may use the server. A file holds hashes of API keys, never the keys."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

_KIND = "personae keys"
_PREFIX = "pk-"


class Keys:
    """API keys by name.

    Parameters
    ----------
    hashes : mapping of name to sha256 (hex)

    Notes
    -----
    A key is 256 random bits, so that one round of SHA-256 is as good as a slow hash, which is for guessable passwords.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "keys.json"
    >>> key = Keys.new(file, "ann")
    >>> Keys.read(file).owner(key), Keys.read(file).owner("pk-guess")
    ('ann', None)
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: bytes.fromhex(value) for name, value in hashes.items()}

    def __len__(self) -> int:
        return len(self._hashes)

    def owner(self, key: str) -> str | None:
        """Whose key it is; every hash is compared, each in constant time, so that the time tells nothing."""
        mine = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        found = None
        for name, value in self._hashes.items():
            if hmac.compare_digest(mine, value):
                found = name
        return found

    @classmethod
    def read(cls, file: Path) -> Keys:
        """Open a file of keys; raises ``ValueError`` if it is none, or has none."""
        entries = _entries(file)
        if not entries:
            raise ValueError(f"{file} has no keys; make one with: personae serve --keys {file} --new-key NAME")
        return cls({name: str(entry["sha256"]) for name, entry in entries.items()})

    @classmethod
    def new(cls, file: Path, name: str) -> str:
        """Make a key, add its hash to the file, and return it: it is nowhere else."""
        if not (name.isprintable() and name.strip() and len(name) <= 64):
            raise ValueError("the name of a key has 1 to 64 printable characters")
        entries = _entries(file) if file.exists() else {}
        if name in entries:
            raise ValueError(f"{file} has a key named {name} already; delete its entry to replace it")
        key = _PREFIX + secrets.token_urlsafe(32)
        entries[name] = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "created": int(time.time())}
        text = json.dumps({"kind": _KIND, "keys": entries}, indent=1, ensure_ascii=False)
        new = file.with_name(f".{file.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
        return key


def _entries(file: Path) -> dict[str, dict[str, str | int]]:
    if not file.exists():
        raise ValueError(f"there is no file {file}; make it with: personae serve --keys {file} --new-key NAME")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["keys"]
        if content["kind"] != _KIND or any(len(bytes.fromhex(e["sha256"])) != 32 for e in entries.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not a file of keys; restore it, or make another with --new-key NAME") from None
    return dict(entries)
