"""`Persona`: somebody to answer as, a vector with its uncertainty and its origin."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LABEL = 200  # characters of a label made here: that of a blend of blends would hold every word of theirs


@dataclass(frozen=True, eq=False)
class Persona:
    """One person, a cohort, a trait group, a blend of these, or somebody met a minute ago.

    Parameters
    ----------
    name : str
        Short unique name, e.g. ``"r0007"`` or ``"cohort-0"``.
    vector : float array, shape (D,)
        The person vector [u, b].
    covariance : float array, shape (D, D)
        Of one person: how uncertain the vector is, given the answers. Of a cohort or trait group: how a member drawn
        at random spreads around the centroid (within-person uncertainty included).
    prior_variance : float
        Trace of the covariance of somebody of whom nothing is known.
    origin : dict
        What it is made of, plain JSON values; ``"kind"`` is respondent, fold-in, cohort, trait group, group or blend.
    label : str
        A few words for people to read.

    Notes
    -----
    In the coordinates of `OpinionModel` the trace of the covariance is the mean squared error of the predicted
    standardised answers over all questions.

    Examples
    --------
    >>> ann = Persona("ann", [1.0, 0.0], 0.1 * np.eye(2), prior_variance=2.0)
    >>> bob = Persona("bob", [0.0, 1.0], 0.3 * np.eye(2), prior_variance=2.0)
    >>> ann.uncertainty
    0.1
    >>> both = Persona.blend({ann: 3, bob: 1})
    >>> both.name, both.vector.tolist()
    ('0.75 ann + 0.25 bob', [0.75, 0.25])
    """

    name: str
    vector: np.ndarray
    covariance: np.ndarray
    prior_variance: float
    origin: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        vector = np.array(self.vector, dtype=np.float64)
        covariance = np.array(self.covariance, dtype=np.float64)
        if vector.ndim != 1 or covariance.shape != (len(vector), len(vector)):
            raise ValueError(
                f'persona "{self.name}" needs a vector (D,) and a covariance (D, D), '
                f"not {vector.shape} and {covariance.shape}"
            )
        if not (np.isfinite(vector).all() and np.isfinite(covariance).all()):
            raise ValueError(f'the vector or covariance of persona "{self.name}" is not finite')
        vector.setflags(write=False)
        covariance.setflags(write=False)
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "covariance", covariance)

    @property
    def uncertainty(self) -> float:
        """Share of the prior variance that is left, from 0 (known exactly) to 1 (nothing known)."""
        return float(np.clip(np.trace(self.covariance) / self.prior_variance, 0, 1)) if self.prior_variance > 0 else 0.0

    @classmethod
    def blend(cls, weights: Mapping[Persona, float], name: str = "", label: str = "") -> Persona:
        """A weighted mean of personas.

        Parameters
        ----------
        weights : mapping of Persona to float
            Positive; normalised to sum to one.
        name, label : str
            Made from the weights where empty.

        Raises
        ------
        ValueError
            No persona, a weight that is not positive, or vectors of different models.

        Notes
        -----
        vector = sum w x, covariance = sum w^2 C: the personas are taken as independent. The origin names the parts, but
        not what these were made of in turn: blends of blends would grow with every level.
        """
        if not weights:
            raise ValueError("a blend needs at least one persona")
        for persona, weight in weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f'the weight of persona "{persona.name}" is {weight}; weights are positive numbers')
        parts = list(weights)
        if len({len(p.vector) for p in parts}) > 1:
            raise ValueError("personas of different opinion models cannot be blended: their vectors differ in length")
        w = np.array([weights[p] for p in parts], dtype=float)
        w /= w.sum()
        return cls(
            name or " + ".join(f"{x:.2g} {p.name}" for x, p in zip(w, parts, strict=True)),
            w @ np.stack([p.vector for p in parts]),
            np.tensordot(w**2, np.stack([p.covariance for p in parts]), axes=1),
            float(w @ [p.prior_variance for p in parts]),
            {
                "kind": "blend",
                "parts": [
                    {"name": p.name, "kind": p.origin.get("kind", "group"), "weight": float(x)}
                    for x, p in zip(w, parts, strict=True)
                ],
            },
            label
            or textwrap.shorten(
                " + ".join(f"{x:.2g} {p.label or p.name}" for x, p in zip(w, parts, strict=True)),
                _LABEL,
                placeholder=" ...",
            ),
        )

    def to_json(self) -> str:
        """Everything as one line of JSON; `from_json` restores an equal persona."""
        return json.dumps(self._plain(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Persona:
        """The persona of `to_json`; raises ``ValueError`` if a part is missing or malformed."""
        try:
            plain = json.loads(text)
            return cls(**{name: plain[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not a persona: {error}") from None

    def _plain(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "vector": self.vector.tolist(), "covariance": self.covariance.tolist()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Persona) and self._plain() == other._plain()

    def __hash__(self) -> int:
        return hash((self.name, self.vector.tobytes()))

    def __repr__(self) -> str:
        label = f", {self.label!r}" if self.label else ""
        return f"Persona({self.name!r}{label}, {len(self.vector)} numbers, uncertainty {self.uncertainty:.2f})"


ANYONE = Persona("anyone", np.zeros(0), np.zeros((0, 0)), 0.0, {"kind": "anyone"})
"""Nobody in particular, for steerers that learned nothing of people."""

Personas = Persona | Sequence[Persona] | np.ndarray
"""One, several, or their vectors (D,) or (P, D)."""
