"""What an evaluation keeps in its folder, so that an interrupted one goes on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder that of one evaluation, or see that it is.

    Parameters
    ----------
    identity : dict
        Plain values that a run must share with the one it goes on from.

    Raises
    ------
    ValueError
        The folder holds another evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "evaluation.json"
    identity = json.loads(json.dumps(identity))
    if about.exists():
        saved = json.loads(about.read_text())
        different = sorted(k for k in saved.keys() | identity.keys() if saved.get(k) != identity.get(k))
        if different:
            raise ValueError(
                f"{folder} holds another evaluation ({', '.join(different)} differ); "
                "repeat its settings to go on, or give another folder"
            )
    else:
        about.write_text(json.dumps(identity, indent=1))


def slug(name: str) -> str:
    """A row's name as the name of a file.

    Examples
    --------
    >>> slug("prompt tuning, K x n tokens")
    'prompt-tuning-k-x-n-tokens'
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def write(path: Path, table: pd.DataFrame) -> None:
    """As Parquet, written beside and renamed: a crash leaves a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    table.to_parquet(partial, index=False)
    os.replace(partial, path)
