"""Everything that is fitted to the training part of a plan, each when a row of the table first asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from personae.data.survey import Question
from personae.evaluation.plan import Cell, Pairs, Plan
from personae.lm.encoder import SentenceEncoder
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import letters_prompt
from personae.lm.reading import represent
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.paper_factorization import PaperFactorization
from personae.people.persona import Persona
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering.base import REGISTRY, Steerer
from personae.steering.text import describe_by_traits

_A_COHORT = 10  # people of a cohort on average, at least
_SEEDLESS = ("people", "paper", "cohorts", "encoder", "text_model", "text_model_minilm")  # see Fitted.with_seed


@dataclass(frozen=True)
class Group:
    """The people of a cell as an opinion model knows them.

    Attributes
    ----------
    vectors : array (P, D)
    personas : list of P Persona, or None
        With their uncertainty where they were not fitted.
    row : int array (n,)
        Place of each answer's person.
    """

    vectors: np.ndarray
    personas: list[Persona] | None
    row: np.ndarray

    @classmethod
    def of(cls, model: OpinionModel | PaperFactorization, cell: Cell) -> Group:
        """Fitted people by their vectors, others by fold-in of what is given of them."""
        ids = pd.Index(cell.pairs.respondents)
        if cell.given is None:
            return cls(model.vectors_, None, model.respondent_ids_.get_indexer(ids))
        # Of whom nothing is given is the average person, which stands last: index -1.
        personas = [*model.fold_in(cell.given), model.fold_in({})]
        return cls(np.stack([p.vector for p in personas]), personas, cell.given.respondent_ids.get_indexer(ids))


class Fitted:
    """Models of one plan and one seed.

    Parameters
    ----------
    plan : Plan
    lm : str or FrozenLM
    steps : int
        Training steps of a steerer at most.
    seed : int
        Of what is trained through the LM; opinion models and cohorts take the plan's.
    folder : Path, optional
        Trained steerers are kept there; one that is there already is opened, an interrupted training goes on.
    progress : bool
    **ready
        What has been fitted already: ``people``, ``cohorts``, ``text_model``, ``steerers`` (by name).
    """

    def __init__(
        self,
        plan: Plan,
        lm: str | FrozenLM = "smollm2-135m",
        steps: int = 400,
        seed: int = 0,
        folder: Path | None = None,
        progress: bool = False,
        **ready: Any,
    ) -> None:
        self.plan, self.train, self.steps, self.seed = plan, plan.train, steps, seed
        self.folder, self.progress = folder, progress
        self._lm = lm
        self._steerers: dict[str, Steerer] = ready.pop("steerers", {})
        self._cohorts: dict[int, Cohorts | None] = {}
        self.memory: dict[Any, Any] = {}  # what several rows share
        vars(self).update(ready)

    def with_seed(self, seed: int) -> Fitted:
        """The same plan with steerers of another seed; what was fitted without the LM is shared."""
        ready = {n: v for n, v in vars(self).items() if n in _SEEDLESS}
        other = Fitted(self.plan, vars(self).get("lm", self._lm), self.steps, seed, self.folder, self.progress, **ready)
        other._cohorts = self._cohorts
        return other

    @property
    def random_state(self) -> int:
        """Seed of what is fitted without the LM."""
        return int(self.plan.settings.get("seed", 0))

    @cached_property
    def lm(self) -> FrozenLM:
        return self._lm if isinstance(self._lm, FrozenLM) else FrozenLM.load(self._lm)

    @cached_property
    def people(self) -> OpinionModel:
        return OpinionModel(random_state=self.random_state).fit(self.train)

    @cached_property
    def paper(self) -> PaperFactorization:
        return PaperFactorization(random_state=self.random_state).fit(self.train)

    @cached_property
    def cohorts(self) -> Cohorts:
        return Cohorts(random_state=self.random_state).fit(self.people, self.train)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        return SentenceEncoder.load("minilm")

    def cohorts_of(self, k: int) -> Cohorts | None:
        """Cohorts of a given number; None where people are too few for it, or differ too little."""
        if k not in self._cohorts:
            self._cohorts[k] = None
            if self.train.n_respondents >= _A_COHORT * k:
                with suppress(ValueError):
                    self._cohorts[k] = Cohorts(k=k, random_state=self.random_state).fit(self.people, self.train)
        return self._cohorts[k]

    def group(self, cell: Cell) -> Group:
        """The people of a cell, as the opinion model knows them."""
        pairs, group = self.memory.get(("group", cell.name), (None, None))
        if pairs is not cell.pairs:
            group = Group.of(self.people, cell)
            self.memory["group", cell.name] = cell.pairs, group
        return group

    @cached_property
    def text_model(self) -> TextOpinionModel:
        """Answers to new questions from the LM's representation of them, without the LM in the loop."""
        return self._text_model(self.lm_embeddings(self.train.questions))

    @cached_property
    def text_model_minilm(self) -> TextOpinionModel:
        """The same from a sentence encoder's embedding."""
        return self._text_model(self.minilm_embeddings(self.train.questions))

    def _text_model(self, embeddings: np.ndarray) -> TextOpinionModel:
        return TextOpinionModel(random_state=self.random_state).fit(self.train, self.people, embeddings)

    def lm_embeddings(self, questions: Sequence[Question]) -> np.ndarray:
        """The LM's own representation (C, 2H) of questions with their options."""
        prompts = [letters_prompt(self.lm, q.text, q.options, "late") for q in questions]
        return represent(self.lm, prompts).cpu().numpy()

    def minilm_embeddings(self, questions: Sequence[Question]) -> np.ndarray:
        """A sentence encoder's embedding (C, H) of questions with their options."""
        return self.encoder.encode([f"{q.text} ({' / '.join(q.options)})" for q in questions])

    def steerer(self, name: str, method: str, **parameters: Any) -> Steerer:
        """A trained steerer, kept in ``folder`` under its name and seed."""
        if name not in self._steerers:
            self._steerers[name] = self._train(f"{name}-{self.seed}".replace(" ", "-"), REGISTRY[method], parameters)
        return self._steerers[name]

    def _train(self, name: str, cls: Any, parameters: dict[str, Any]) -> Steerer:
        told = {"describe": describe_by_traits(self.plan)} if "describe" in cls().get_params() else {}
        home = None if self.folder is None else self.folder / name
        if home is not None and (home / "steerer.json").exists():
            return cls.load(home, lm=self.lm, **told)
        steerer = cls(lm=self.lm, steps=self.steps, random_state=self.seed, **told, **parameters)
        checkpoint = None if home is None else home.with_suffix(".safetensors")
        steerer.fit(self.train, self.people, checkpoint=checkpoint, resume=True, progress=self.progress)
        if home is not None and checkpoint is not None:
            steerer.save(home)
            checkpoint.unlink(missing_ok=True)
        return steerer


def by_question(pairs: Pairs) -> list[tuple[int, np.ndarray]]:
    """Each question asked with the places of its answers."""
    order = np.argsort(pairs.question, kind="stable")
    columns, starts = np.unique(pairs.question[order], return_index=True)
    return list(zip(columns.tolist(), np.split(order, starts[1:]), strict=True))
