"""What a reader did with a file: read, skipped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class SurveyError(ValueError):
    """A survey that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass
class Note:
    """One reason for which something was skipped or changed, how often, and where (the first thousand places)."""

    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    named: bool = False  # the places are names of columns or questions, which are all printed


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
    >>> account.add("column that is not in the questions table, skipped", name="age")
    >>> print(account)
    responses.csv (wide)
      2 x don't know read as missing: row 3, column natfare; row 9, column natfare
      1 x column that is not in the questions table, skipped: age
    """

    source: str
    format: str
    notes: list[Note] = field(default_factory=list)

    max_examples = 1000  # kept
    shown_examples = 3  # printed of rows and people; of columns and questions all, since somebody has to check each

    def add(self, reason: str, count: int = 1, where: str | None = None, name: str | None = None) -> None:
        """Count ``count`` more cases of ``reason``.

        Parameters
        ----------
        where : str, optional
            A row or a person; the first few are printed as examples.
        name : str, optional
            A column or a question instead; all of them are printed.
        """
        if count == 0:
            return
        note = next((n for n in self.notes if n.reason == reason), None)
        if note is None:
            note = Note(reason)
            self.notes.append(note)
        note.count += count
        note.named |= name is not None
        place = where if name is None else name
        if place is not None and len(note.examples) < self.max_examples:
            note.examples.append(place)

    def as_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "format": self.format,
            "notes": [asdict(note) for note in self.notes],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Account:
        """What `as_dict` gave."""
        return cls(plain["source"], plain["format"], [Note(**note) for note in plain["notes"]])

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.format})"]
        for n in self.notes:
            shown = n.examples if n.named else n.examples[: self.shown_examples]
            where = ": " + "; ".join(shown) if shown else ""
            left = len(n.examples) == self.max_examples if n.named else max(n.count, len(n.examples)) > len(shown)
            more = "; ..." if shown and left else ""
            lines.append(f"  {n.count:,} x {n.reason}{where}{more}")
        return "\n".join(lines)
