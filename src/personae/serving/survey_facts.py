"""`SurveyFacts`: what may be shown of a survey, computed once: questions, cohorts and the map."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from personae.people.inquiry import next_question
from personae.people.suppression import protected
from personae.serving import schemas
from personae.serving.directory import MINIMUM, Directory
from personae.serving.schemas import Cell, CohortCard, KnownQuestion, plain_number

_DRAWN = 10_000  # people of the map
_TRAIT_GROUPS = 60  # of the map, the largest


class SurveyFacts:
    """Questions, cohorts and map of a bundle, with every small cell and what would give it away left out."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.people = directory.bundle.people
        self.cohorts = None
        if "cohorts" in directory.bundle:
            self.cohorts = copy.copy(directory.bundle.cohorts)
            self.cohorts.profiles_ = protected(self.cohorts.profiles_, MINIMUM)
        self.questions = {q.id: q for q in self._questions()}

    # questions -------------------------------------------------------------------------------------------------------
    def _questions(self) -> Iterable[KnownQuestion]:
        shares: Mapping[tuple[str, str], float] = {}
        if self.cohorts is not None:
            answers = self.cohorts.profiles_.answers
            first = answers[answers.cohort == 0]
            shares = dict(zip(zip(first.question, first.option, strict=True), first.population_share, strict=True))
        for q in self.people.questions_:
            population = [plain_number(shares.get((q.id, o), np.nan)) for o in q.options]
            yield KnownQuestion(
                id=q.id, text=q.text, options=list(q.options), title=q.title, topic=q.topic, population=population
            )

    def next_question(self, asked: schemas.NextQuestionRequest) -> schemas.NextQuestion:
        """What to ask next, and where somebody is who gave these answers."""
        persona = self.people.fold_in(asked.answers)
        found = next_question(self.people, asked.answers, asked.among)
        return schemas.NextQuestion(
            question=None if found is None else self.questions[found.question.id],
            uncertainty_after=None if found is None else round(found.uncertainty, 4),
            persona=self.directory.card(persona, id="you"),
        )

    # cohorts ---------------------------------------------------------------------------------------------------------
    def cohort_cards(self) -> schemas.Cohorts:
        """All cohorts, each with what sets it apart."""
        cards = [] if self.cohorts is None else [self.cohort_card(c) for c in range(self.cohorts.k_)]
        return schemas.Cohorts(data=cards, people=len(self.people), minimum=MINIMUM)

    def cohort_card(self, cohort: int, whole: bool = False) -> CohortCard:
        """One cohort; ``whole`` for all its answers and traits."""
        assert self.cohorts is not None
        persona = self.cohorts[cohort]
        card = self.directory.card(persona)
        if whole:
            tables = self.cohorts.profiles_.answers, self.cohorts.profiles_.traits
            answers, traits = (table[table.cohort == cohort] for table in tables)
        else:
            profiles = self.cohorts.profiles_
            answers, traits = profiles.telling_answers(cohort), profiles.standing_out(cohort)
        distance = float(self.cohorts.summary_.distance[cohort])
        return CohortCard(
            id=card.id,
            label=card.label,
            people=card.people,
            distance=None if card.people is None else plain_number(distance),
            uncertainty=card.uncertainty,
            place=card.place,
            answers=_cells(answers, "question", "option"),
            traits=_cells(traits, "trait", "value"),
        )

    # the map -------------------------------------------------------------------------------------------------------
    def map(self, seed: int = 0) -> schemas.Map:
        """Everybody, or a sample of many, and the groups."""
        people, place = self.people, self.directory.map
        rows = np.arange(len(people))
        if len(rows) > _DRAWN:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_DRAWN])
        prior = max(float(np.trace(people.prior_covariance_)), 1e-12)
        uncertainty = np.clip(people.covariance(rows).trace(axis1=1, axis2=2) / prior, 0, 1)
        sizes = self.directory.cohort_sizes
        shown = [(p, n) for p, n in zip(self.directory.cohorts, sizes, strict=True) if n is not None]
        labels = [None] * len(rows) if self.cohorts is None else self.cohorts.labels_[rows].tolist()
        points = np.round(place.points[rows], 4)
        return schemas.Map(
            people=schemas.MapPeople(
                id=[str(i) for i in people.respondent_ids_[rows]],
                x=points[:, 0].tolist(),
                y=points[:, 1].tolist(),
                cohort=[None if c is None or sizes[c] is None else c for c in labels],
                uncertainty=np.round(uncertainty.astype(float), 3).tolist(),
            ),
            of=len(people),
            cohorts=[self._group(p.name, p.label, place.place(p.vector), n) for p, n in shown],
            traits=self._trait_groups(),
            axes=[
                schemas.MapAxis(share=round(float(s), 4), question=people.questions_[j].id, towards=towards)
                for s, j in zip(place.share, place.strongest, strict=True)
                for towards in people.questions_[j].options[-1:]
            ],
        )

    def _trait_groups(self) -> list[schemas.MapGroup]:
        """The largest ones, each at the mean of its members' points."""
        groups, found = self.directory.trait_groups, []
        for name in sorted(groups, key=lambda name: -groups[name].people)[:_TRAIT_GROUPS]:
            group = groups[name]
            members = (self.people.traits_[group.trait] == group.value).fillna(False).to_numpy(dtype=bool)
            at = self.directory.map.points[members].mean(0)
            found.append(self._group(name, group.value, at, group.people))
        return found

    @staticmethod
    def _group(name: str, label: str, at: np.ndarray, people: int) -> schemas.MapGroup:
        return schemas.MapGroup(id=name, label=label, x=round(float(at[0]), 4), y=round(float(at[1]), 4), people=people)


def _cells(table: pd.DataFrame, name: str, value: str) -> list[Cell]:
    columns = [table[c] for c in (name, value, "count", "n", "share", "low", "high", "population_share")]
    return [
        Cell(
            name=str(row[0]),
            value=str(row[1]),
            count=_whole(row[2]),
            n=_whole(row[3]),
            **dict(zip(("share", "low", "high", "population"), map(plain_number, row[4:]), strict=True)),
        )
        for row in zip(*columns, strict=True)
    ]


def _whole(value: float) -> int | None:
    return None if value != value else round(value)
