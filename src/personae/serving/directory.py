"""`Directory`: who may speak, by name, by answers or as a blend, and what may be known of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd

from personae.bundle import Bundle
from personae.people.map import Map, coordinates
from personae.people.persona import Persona
from personae.people.suppression import hidden_cells
from personae.serving.errors import ApiError
from personae.serving.schemas import NewPersona, PersonaCard, PersonaSpec, Place
from personae.serving.store import PREFIX, PersonaStore, Stored

MINIMUM = 10  # figures of fewer people are not shown
EVERYBODY, NEW = "everybody", "new person"
_TOGETHER = 256  # new people folded in at a time: far faster than one by one, and soon done
_MADE = re.compile(PREFIX + "[0-9a-f]{32}")
_NOTES = {
    "respondent": "What a model makes of this person; not what they said or would sign.",
    "fold-in": "What a model makes of a few answers.",
}
_NOTE = "What a model makes of this group on average; its members differ."


class TraitGroup(NamedTuple):
    """People with one value of a trait."""

    trait: str
    value: str
    people: int


class Directory:
    """Personas of a bundle, and those made while the server runs.

    Parameters
    ----------
    bundle : Bundle
    store : PersonaStore

    Notes
    -----
    A name is, in this order: ``"everybody"``, the id of a persona made here, or what `Bundle.persona` knows: a cohort,
    a respondent, a trait group, a blend of these. Of the trait groups only those speak whose size may be shown: the
    mean of all the others of a trait is what everybody's leaves of theirs, and it must not be that of a few.
    """

    def __init__(self, bundle: Bundle, store: PersonaStore) -> None:
        self.bundle, self.store = bundle, store
        self.created = int(datetime.fromisoformat(bundle.manifest["created"]).timestamp())
        self._of_bundle = lru_cache(4096)(self._look_up)
        self.trait_groups = self._trait_groups()

    # finding -------------------------------------------------------------------------------------------------------
    def find(self, name: str, owner: str = "") -> Persona:
        """The persona of a name; raises `ApiError` 404 if there is none."""
        return stored.persona if (stored := self.stored(name, owner)) is not None else self._of_bundle(name)

    def stored(self, name: str, owner: str) -> Stored | None:
        return self.store.get(name, owner) if _MADE.fullmatch(name) else None

    def meet(self, who: str | PersonaSpec | NewPersona, owner: str = "") -> Persona:
        """The persona of a request: somebody known, or somebody new who is not remembered."""
        return next(self.meet_all([who], owner))

    def meet_all(self, asked: Sequence[str | PersonaSpec | NewPersona], owner: str = "") -> Iterator[Persona]:
        """The personas of a request one after the other, so that whoever asks may stop."""
        for start in range(0, len(asked), _TOGETHER):
            some = asked[start : start + _TOGETHER]
            answers = [who.answers for who in some if not isinstance(who, str) and who.answers is not None]
            new = iter(self.bundle.people.fold_in(answers) if answers else [])
            for who in some:
                if isinstance(who, str):
                    yield self.find(who, owner)
                    continue
                if who.answers is not None:
                    found, name = next(new), NEW
                else:
                    known = who.name if isinstance(who, PersonaSpec) else None
                    found = self._blend(who.blend or {}, owner) if known is None else self.find(known, owner)
                    name = found.name
                yield _called(found, who.label or name, who.label or found.label)

    def _blend(self, weights: Mapping[str, float], owner: str) -> Persona:
        parts: dict[Persona, float] = {}
        for name, weight in weights.items():
            persona = self.find(name, owner)
            parts[persona] = parts.get(persona, 0.0) + weight
        return Persona.blend(parts)

    def _look_up(self, name: str) -> Persona:
        if name == EVERYBODY:
            return self.everybody
        try:
            found = self.bundle.persona(name)
        except ValueError as error:
            if "trait:" in name:  # how many people there are, or which other values, is not told either
                raise _no_trait_group(name) from None
            raise ApiError(404, str(error), "persona_not_found", "persona") from None
        parts = found.origin.get("parts", [{"name": found.name, "kind": found.origin.get("kind")}])
        if any(p["kind"] == "trait group" and f"trait:{p['name']}" not in self.trait_groups for p in parts):
            raise _no_trait_group(name)
        return found

    @cached_property
    def everybody(self) -> Persona:
        people = self.bundle.people
        label = f"{len(people):,} people"
        return people.centroid(np.arange(len(people)), EVERYBODY, {"kind": EVERYBODY}, label)

    # listing -------------------------------------------------------------------------------------------------------
    def groups(self) -> dict[str, tuple[str, str]]:
        """Kind and label of everybody, the cohorts and the trait groups, by name."""
        found = {EVERYBODY: ("everybody", self.everybody.label)}
        found |= {p.name: ("cohort", p.label) for p in self.cohorts}
        return found | {name: ("trait group", g.value) for name, g in self.trait_groups.items()}

    @property
    def cohorts(self) -> Sequence[Persona]:
        return list(self.bundle.cohorts) if "cohorts" in self.bundle else []

    def _trait_groups(self) -> dict[str, TraitGroup]:
        groups = {}
        traits = self.bundle.people.traits_
        for trait in (t for t in traits.columns if "=" not in str(t)):  # whose groups no name means
            sizes = traits[trait].astype("string").value_counts()
            missing = int(traits[trait].isna().sum())
            cells = np.array([*sizes, *([missing] if missing else [])], float)[None]
            hidden = hidden_cells(cells, MINIMUM, cells.sum(1))[0]
            for value, size, hide in zip(sizes.index, sizes, hidden, strict=False):
                if not hide:
                    groups[f"trait:{trait}={value}"] = TraitGroup(str(trait), str(value), int(size))
        return groups

    # what may be known -----------------------------------------------------------------------------------------------
    @cached_property
    def map(self) -> Map:
        return coordinates(self.bundle.people, self.bundle.cohorts if "cohorts" in self.bundle else None)

    @cached_property
    def cohort_sizes(self) -> list[int | None]:
        """People of each cohort; None where they are too few, or would tell the size of a small one."""
        if "cohorts" not in self.bundle:
            return []
        cohorts = self.bundle.cohorts
        sizes = np.bincount(cohorts.labels_, minlength=cohorts.k_).astype(float)[None]
        hidden = hidden_cells(sizes, MINIMUM, sizes.sum(1))[0]
        return [None if hide else int(n) for n, hide in zip(sizes[0], hidden, strict=True)]

    def card(self, persona: Persona, id: str = "", created: int | None = None) -> PersonaCard:
        """What may be shown of a persona."""
        origin = persona.origin
        kind = str(origin.get("kind", "group"))
        people: int | None = None
        place: Place | None = self._place(persona)
        if kind == "cohort":
            people = self.cohort_sizes[origin["cohort"]]
            place = None if people is None else place
        elif kind == "trait group":
            people = self.trait_groups[f"trait:{origin['trait']}={origin['value']}"].people
        elif kind == EVERYBODY:
            people = len(self.bundle.people)
        return PersonaCard(
            id=id or persona.name,
            kind=kind,
            label=persona.label,
            uncertainty=round(persona.uncertainty, 4),
            people=people,
            cohort=self._nearest(persona),
            place=place,
            created=created,
            note=_NOTES.get(kind, _NOTE),
        )

    def _place(self, persona: Persona) -> Place:
        x, y = self.map.place(persona.vector)
        spread = self.map.axes.T @ persona.covariance @ self.map.axes
        return Place(x=round(float(x), 4), y=round(float(y), 4), covariance=np.round(spread, 5).tolist())

    def _nearest(self, persona: Persona) -> str | None:
        if "cohorts" not in self.bundle:
            return None
        cohort = int(self.bundle.cohorts.assign(persona)[0])
        return None if self.cohort_sizes[cohort] is None else f"cohort-{cohort}"

    def respondents(self, after: str | None, limit: int) -> list[str]:
        """Ids of the next respondents; after an unknown one there are none."""
        ids = self.bundle.people.respondent_ids_
        start = 0 if after is None else int(ids.get_indexer(pd.Index([after], dtype=object))[0]) + 1
        return [str(i) for i in islice(ids, start, start + limit)]


def model_of(bundle: Bundle) -> str:
    """Fingerprint of a bundle's opinion model: a persona's vector means nothing to another."""
    files = bundle.manifest["files"]
    mine = sorted(f"{name} {facts['sha256']}" for name, facts in files.items() if name.startswith("people/"))
    return hashlib.sha256("\n".join(mine).encode()).hexdigest()[:32]


def _no_trait_group(name: str) -> ApiError:
    sentence = f'there is no "{name}" here; GET /v1/models lists the trait groups that are large enough to speak'
    return ApiError(404, sentence, "persona_not_found", "persona")


def _called(persona: Persona, name: str, label: str) -> Persona:
    return Persona(name, persona.vector, persona.covariance, persona.prior_variance, persona.origin, label)
