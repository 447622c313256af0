"""What a reader did with a file: read, skipped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class SurveyError(ValueError):
    """A survey that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass
class Note:
    """One reason for which something was skipped or changed, how often, and where (the first thousand places)."""

    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Account:
    """The tidy account that every reader returns with its survey.

    Parameters
    ----------
    source : str
        The path that was read.
    format : str
        The reader that recognised it, e.g. ``"wide"``.

    Examples
    --------
    >>> account = Account("responses.csv", "wide")
    >>> account.add("don't know read as missing", where="row 3, column natfare")
    >>> account.add("don't know read as missing", where="row 9, column natfare")
    >>> print(account)
    responses.csv (wide)
      2 x don't know read as missing: row 3, column natfare; row 9, column natfare
    """

    source: str
    format: str
    notes: list[Note] = field(default_factory=list)

    max_examples = 1000  # kept
    shown_examples = 3  # printed

    def add(self, reason: str, count: int = 1, where: str | None = None) -> None:
        """Count ``count`` more cases of ``reason``; the places are kept as examples."""
        if count == 0:
            return
        note = next((n for n in self.notes if n.reason == reason), None)
        if note is None:
            note = Note(reason)
            self.notes.append(note)
        note.count += count
        if where is not None and len(note.examples) < self.max_examples:
            note.examples.append(where)

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "format": self.format,
            "notes": [{"reason": n.reason, "count": n.count, "examples": n.examples} for n in self.notes],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Account:
        """What `as_dict` gave."""
        return cls(plain["source"], plain["format"], [Note(**note) for note in plain["notes"]])

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.format})"]
        for n in self.notes:
            shown = n.examples[: self.shown_examples]
            where = ": " + "; ".join(shown) if shown else ""
            more = "; ..." if shown and max(n.count, len(n.examples)) > len(shown) else ""
            lines.append(f"  {n.count:,} x {n.reason}{where}{more}")
        return "\n".join(lines)
