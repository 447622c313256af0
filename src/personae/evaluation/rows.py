"""The rows of the table: every way to predict an answer, from the majority to the steered LM.

A row is a function of what was fitted and of a cell; it gives option probabilities (n, K). Rows are registered by a
decorator, and every steerer that registers itself is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from personae.data.survey import Survey
from personae.evaluation.fitted import Fitted, Group, by_question
from personae.evaluation.plan import Cell, Plan
from personae.people.cohorts import Cohorts
from personae.people.persona import Persona
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import lora as _lora  # noqa: F401  registers itself
from personae.steering.base import REGISTRY
from personae.steering.persona_prompt import PersonaPrompt
from personae.steering.text import Describe, SimilarAnswers, TextPrompt, describe_by_traits, every_different, nothing

Predict = Callable[[Fitted, Cell], np.ndarray]
COHORTS = (6, 10, 20, 30, 50)  # numbers of cohorts, as in the paper
_HALF = 0.5  # pseudo-count of every option
_DRAWN = 10.0  # answers' worth of everybody's distribution that a group's is drawn to


@dataclass(frozen=True)
class Row:
    """One way to predict answers.

    Attributes
    ----------
    name : str
    predict : callable
        (fitted, cell) to probabilities (n, K), zero beyond a question's own options.
    known, new : bool
        Whether it predicts answers to questions of the training part, and to others.
    slow : bool
        Whether an answer costs a whole pass of the LM, so that fewer are asked for.
    trained : bool
        Whether it was trained through the LM with a seed, and is repeated with several.
    traits : bool
        Whether it needs traits.
    costly : bool
        Whether its training, too, costs whole passes of the LM; such a row is only run when it is named.
    cohorts : int
        It takes fitted people who can be split into so many.
    """

    name: str
    predict: Predict
    known: bool = True
    new: bool = True
    slow: bool = False
    trained: bool = False
    traits: bool = False
    costly: bool = False
    cohorts: int = 0

    def possible(self, fitted: Fitted) -> bool:
        """Whether the fitted people can be split as it needs them to be."""
        return not self.cohorts or fitted.cohorts_of(self.cohorts) is not None


ROWS: dict[str, Row] = {}


def row(name: str, **about: Any) -> Callable[[Predict], Predict]:
    """Register a function as a row of the table."""

    def register(predict: Predict) -> Predict:
        ROWS[name] = Row(name, predict, **about)
        return predict

    return register


# without a language model --------------------------------------------------------------------------------------
@row("uniform", known=False)
def uniform(fitted: Fitted, cell: Cell) -> np.ndarray:
    """Every option alike."""
    n = np.array([len(q.options) for q in cell.pairs.questions])
    return ((np.arange(n.max()) < n[:, None]) / n[:, None])[cell.pairs.question]


@row("majority", new=False)
def majority(fitted: Fitted, cell: Cell) -> np.ndarray:
    """What everybody answered to the question."""
    return _shares(fitted.train)[_columns(fitted.train, cell)]


@row("trait-group majority", new=False, traits=True)
def trait_majority(fitted: Fitted, cell: Cell) -> np.ndarray:
    """What people with the same value of a trait answered; of all traits the one that fits the training part best."""
    train, values = fitted.train, _trait(fitted)
    return _of_groups(train, values.loc[train.respondent_ids], values.loc[cell.pairs.respondents], cell)


@row("cohort majority", new=False)
def cohort_majority(fitted: Fitted, cell: Cell) -> np.ndarray:
    """What the members of the person's cohort answered."""
    return _cohort_majority(fitted, cell, fitted.cohorts)


def _cohort_majority(fitted: Fitted, cell: Cell, cohorts: Cohorts | None) -> np.ndarray:
    assert cohorts is not None
    group = fitted.group(cell)
    mine = pd.Series(cohorts.assign(group.vectors)[group.row])
    return _of_groups(fitted.train, pd.Series(cohorts.labels_), mine, cell)


@row("opinion model, as published", new=False)
def paper_factorization(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The paper's factorisation with our read-out."""
    group = Group.of(fitted.paper, cell)
    column = _columns(fitted.train, cell)
    who = None if cell.given is None else group.vectors
    return fitted.paper.predict_proba_pairs(group.row % len(group.vectors), column, who)


@row("opinion model", new=False)
def opinion_model(fitted: Fitted, cell: Cell) -> np.ndarray:
    """`OpinionModel`."""
    group = fitted.group(cell)
    row = group.row % len(group.vectors)
    return fitted.people.predict_proba_pairs(row, _columns(fitted.train, cell), group.personas)


@row("opinion model on the question's text")
def text_opinion_model(fitted: Fitted, cell: Cell) -> np.ndarray:
    """`TextOpinionModel` on the LM's own representation of the question, without the LM in the loop."""
    return _by_text(fitted, cell, fitted.text_model, fitted.lm_embeddings)


@row("opinion model on the question's text, MiniLM")
def text_opinion_model_minilm(fitted: Fitted, cell: Cell) -> np.ndarray:
    """`TextOpinionModel` on a sentence encoder's embedding of the question."""
    return _by_text(fitted, cell, fitted.text_model_minilm, fitted.minilm_embeddings)


def _by_text(fitted: Fitted, cell: Cell, model: TextOpinionModel, embed: Callable[..., np.ndarray]) -> np.ndarray:
    group, pairs = fitted.group(cell), cell.pairs
    out = _empty(cell)
    asked = by_question(pairs)
    for (j, at), h in zip(asked, embed([pairs.questions[j] for j, _ in asked]), strict=True):
        k = len(pairs.questions[j].options)
        out[at, :k] = model.predict_proba(group.vectors[group.row[at]], h[None], [k], known=not cell.new)[:, 0]
    return out


# a language model that nobody trained --------------------------------------------------------------------------
@row("raw LM")
def raw(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The LM asked without a word about the person."""
    return _told(fitted, cell, nothing)


@row("LM with traits as text", slow=True, traits=True)
def traits_text(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The LM told who is asked."""
    return _told(fitted, cell, describe_by_traits(fitted.plan))


@row("LM with similar answers as text", slow=True)
def similar_answers(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The LM told the person's five answers to the most similar questions."""
    return _told(fitted, cell, SimilarAnswers(cell.given or fitted.train, fitted.encoder))


# a language model that is steered ------------------------------------------------------------------------------
@row("steered LM, shuffled people", trained=True)
def shuffled(fitted: Fitted, cell: Cell) -> np.ndarray:
    """What the steered LM says of somebody else: a control for what it knows of the question alone."""
    return _steered(fitted, cell)["shuffled"]


@row("steered LM, cohort", trained=True)
def cohort(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The centroid of the person's cohort, of as many as `Cohorts` chose."""
    return _steered(fitted, cell)["cohort"]


@row("steered LM, person", trained=True)
def person(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The person's own vector."""
    return _steered(fitted, cell)["person"]


@row("steered LM, trait group", trained=True, traits=True)
def trait_group(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The centroid of those with the same value of the trait that fits the training part best."""
    return _steered(fitted, cell)["trait group"]


def _of_k(k: int) -> None:
    @row(f"cohort majority, {k}", new=False, cohorts=k)
    def counted(fitted: Fitted, cell: Cell) -> np.ndarray:
        """What the members of the person's cohort answered, of a given number of cohorts."""
        return _cohort_majority(fitted, cell, fitted.cohorts_of(k))

    @row(f"steered LM, {k} cohorts", trained=True, cohorts=k)
    def centroids(fitted: Fitted, cell: Cell) -> np.ndarray:
        """The centroid of the person's cohort, of a given number of cohorts."""
        ks = [k for k in COHORTS if fitted.cohorts_of(k) is not None]
        return _steered(fitted, cell, ks)[f"{k} cohorts"]


for _k in COHORTS:
    _of_k(_k)


@row("steered LM, one constant prompt", trained=True)
def constant(fitted: Fitted, cell: Cell) -> np.ndarray:
    """One trained soft prompt for everybody and every question: what the format alone gives."""
    return _alone(fitted, cell, "constant prompt", recipe="constant")


@row("steered LM, as published", trained=True, slow=True, costly=True)
def published(fitted: Fitted, cell: Cell) -> np.ndarray:
    """The paper's soft-prompting model: a perceptron on the vector, key/values before every layer."""
    return _alone(fitted, cell, "paper prompt", recipe="paper")


def _at(placement: str) -> None:
    @row(f"steered LM, {placement}", trained=True, slow=True, costly=True)
    def placed(fitted: Fitted, cell: Cell) -> np.ndarray:
        return _alone(fitted, cell, f"persona prompt {placement}", placement=placement)

    placed.__doc__ = f'The persona prompt with placement "{placement}".'


for _placement in ("prefix", "before", "system"):
    _at(_placement)


def _alone(fitted: Fitted, cell: Cell, name: str, **parameters: str) -> np.ndarray:
    """The person's own vector, by another persona prompt than the default."""
    steerer = fitted.steerer(name, "persona_prompt", **parameters)
    assert isinstance(steerer, PersonaPrompt)
    return _by_question(steerer, [_own(fitted, cell)], cell)[0]


class StandIns(NamedTuple):
    """Who stands for the person of each answer: vectors (M, D), covariances (M, D, D), rows (n,) of these."""

    vectors: np.ndarray
    covariances: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, personas: Sequence[Persona], row: np.ndarray) -> StandIns:
        return cls(np.stack([p.vector for p in personas]), np.stack([p.covariance for p in personas]), row)


def _steered(fitted: Fitted, cell: Cell, ks: Iterable[int] = ()) -> dict[str, Any]:
    """Predictions with everybody who may stand for the people: all share one pass a question.

    Cells that ask for the same answers (of people of whom more or less is known) share it, too.
    """
    ks = tuple(ks)
    known = fitted.memory.setdefault(("steered", ks), {})
    if cell.name not in known or known[cell.name]["of"] is not cell.pairs:
        cells = [c for c in fitted.plan.cells.values() if c.pairs is cell.pairs] or [cell]
        sets = {(c.name, name): x for c in cells for name, x in _stand_ins(fitted, c, ks).items()}
        steerer = fitted.steerer("persona prompt", "persona_prompt")
        assert isinstance(steerer, PersonaPrompt)
        known.update({c.name: {"of": cell.pairs} for c in cells})
        for (name, which), p in zip(sets, _by_question(steerer, list(sets.values()), cell), strict=True):
            known[name][which] = p
    return known[cell.name]


def _stand_ins(fitted: Fitted, cell: Cell, ks: tuple[int, ...]) -> dict[str, StandIns]:
    mine = _own(fitted, cell)
    if ks:
        return {f"{k} cohorts": _cohorts(fitted.cohorts_of(k), mine) for k in ks}
    # A fixed permutation of people, not of answers: one stranger a person.
    other = np.random.default_rng(fitted.random_state).permutation(len(mine.vectors))
    sets = {
        "shuffled": mine._replace(row=other[mine.row]),
        "cohort": _cohorts(fitted.cohorts, mine),
        "person": mine,
    }
    return {**sets, "trait group": _trait_groups(fitted, cell)} if fitted.plan.traits.shape[1] else sets


def _own(fitted: Fitted, cell: Cell) -> StandIns:
    """Everybody as themselves; those who were fitted are as well known as anybody of them."""
    group = fitted.group(cell)
    if group.personas is not None:
        return StandIns.of(group.personas, group.row % len(group.personas))
    typical = fitted.people.typical_covariance_
    return StandIns(group.vectors, np.broadcast_to(typical, (len(group.vectors), *typical.shape)), group.row)


def _cohorts(cohorts: Cohorts | None, mine: StandIns) -> StandIns:
    assert cohorts is not None
    return StandIns.of(list(cohorts), cohorts.assign(mine.vectors)[mine.row])


def _trait_groups(fitted: Fitted, cell: Cell) -> StandIns:
    """Fitted people with the same value of the best trait; the mean of few is drawn to everybody's, who come last."""
    values = _trait(fitted)
    if "trait groups" not in fitted.memory:  # the same for every cell
        people = fitted.people
        codes, found = pd.factorize(values.loc[people.respondent_ids_])
        everybody = people.centroid(np.arange(len(people)), "everybody", {})
        groups = [people.centroid(np.flatnonzero(codes == code), str(value), {}) for code, value in enumerate(found)]
        size = np.bincount(codes)
        drawn = [
            everybody.vector + w * (group.vector - everybody.vector)
            for w, group in zip(size / (size + _DRAWN), groups, strict=True)
        ]
        covariances = np.stack([p.covariance for p in (*groups, everybody)])
        fitted.memory["trait groups"] = pd.Index(found), np.stack([*drawn, everybody.vector]), covariances
    found, vectors, covariances = fitted.memory["trait groups"]
    row = found.get_indexer(values.loc[cell.pairs.respondents])
    return StandIns(vectors, covariances, row % len(vectors))


def _trait(fitted: Fitted) -> pd.Series:
    """Everybody's value of the trait whose groups predict the training answers best."""
    if "trait" not in fitted.memory:
        train, traits = fitted.train, fitted.plan.traits
        values = [traits[t].astype("string").fillna("") for t in traits.columns]
        fitted.memory["trait"] = max(values, key=lambda v: _likelihood(train, v.loc[train.respondent_ids]))
    return fitted.memory["trait"]


def _by_question(steerer: PersonaPrompt, sets: list[StandIns], cell: Cell) -> np.ndarray:
    """Probabilities (sets, n, K): a question is read once for everybody who was asked, whoever stands for them."""
    out = np.zeros((len(sets), *_empty(cell).shape), dtype=np.float32)
    for j, at in by_question(cell.pairs):
        who = [np.unique(s.row[at], return_inverse=True) for s in sets]  # many share a centroid
        vectors = np.concatenate([s.vectors[rows] for s, (rows, _) in zip(sets, who, strict=True)])
        covariances = np.concatenate([s.covariances[rows] for s, (rows, _) in zip(sets, who, strict=True)])
        asked = [cell.pairs.questions[j]]
        p = steerer.predict_proba_vectors(torch.as_tensor(vectors).float(), asked, covariances=covariances)[:, 0]
        starts = np.cumsum([0, *(len(rows) for rows, _ in who)])
        for i, (_, back) in enumerate(who):
            out[i, at, : p.shape[1]] = p[starts[i] + back]
    return out


def _any_steerer(method: str) -> None:
    @row(method, trained=True, slow=True, costly=True)
    def predict(fitted: Fitted, cell: Cell) -> np.ndarray:
        """Another steerer that registered itself."""
        steerer, group = fitted.steerer(method, method), fitted.group(cell)
        personas = group.personas or [fitted.people[r] for r in np.unique(cell.pairs.respondents)]
        who = {p.name: p for p in personas}
        out = _empty(cell)
        for j, at in by_question(cell.pairs):
            asked = [who.get(r, personas[-1]) for r in cell.pairs.respondents[at]]
            p = steerer.predict_proba(asked, [cell.pairs.questions[j]])[:, 0]
            out[at, : p.shape[1]] = p
        return out


for _method in REGISTRY:
    if _method not in ("persona_prompt", "text"):  # which have rows of their own
        _any_steerer(_method)


# pieces --------------------------------------------------------------------------------------------------------
def _empty(cell: Cell) -> np.ndarray:
    return np.zeros((len(cell), max(len(q.options) for q in cell.pairs.questions)), dtype=np.float32)


def _columns(train: Survey, cell: Cell) -> np.ndarray:
    """Column of each answer's question in the training part."""
    return train.question_index([cell.pairs.questions[j].id for j in cell.pairs.question])


def _shares(train: Survey) -> np.ndarray:
    """Option shares (Q, K) of everybody."""
    counts = train.option_counts() + _HALF * (np.arange(train.n_options.max()) < train.n_options[:, None])
    return counts / counts.sum(1, keepdims=True)


def _group_shares(train: Survey, groups: pd.Series) -> tuple[pd.Index, np.ndarray]:
    """Group names, and option shares (G, Q, K) drawn to everybody's where a group is small."""
    code, names = pd.factorize(groups.to_numpy(), sort=True)
    counts = np.zeros((len(names), train.n_questions, int(train.n_options.max())))
    np.add.at(counts, (code[train.respondent], train.question, train.option), 1)
    counts += _DRAWN * _shares(train)
    return pd.Index(names), counts / counts.sum(-1, keepdims=True)


def _of_groups(train: Survey, fitted_groups: pd.Series, groups: pd.Series, cell: Cell) -> np.ndarray:
    """Option shares of each answer's group; everybody's where it is unknown."""
    names, shares = _group_shares(train, fitted_groups)
    shares = np.concatenate([shares, _shares(train)[None]])  # an unknown group is the last, index -1
    return shares[names.get_indexer(pd.Index(groups.to_numpy())), _columns(train, cell)]


def _likelihood(train: Survey, groups: pd.Series) -> float:
    """Log-likelihood of the training answers under their groups' shares, each answer left out of its own share."""
    names, _ = _group_shares(train, groups)
    code = names.get_indexer(pd.Index(groups.to_numpy()))[train.respondent]
    counts = np.zeros((len(names), train.n_questions, int(train.n_options.max())))
    np.add.at(counts, (code, train.question, train.option), 1)
    mine = counts[code, train.question, train.option] - 1 + _DRAWN * _shares(train)[train.question, train.option]
    return float(np.log(mine / (counts[code, train.question].sum(-1) - 1 + _DRAWN)).sum())


def _told(fitted: Fitted, cell: Cell, describe: Describe) -> np.ndarray:
    """The LM's letters after a text about the person; every different (text, question) once, in batches."""
    pairs = cell.pairs
    people = {who: Persona(who, np.zeros(1), np.zeros((1, 1)), 1.0) for who in np.unique(pairs.respondents)}
    asked = [pairs.questions[j] for j in pairs.question]
    wanted = [(describe(people[who], q), q) for who, q in zip(pairs.respondents, asked, strict=True)]
    return every_different(wanted, TextPrompt(fitted.lm).fit().predict_letters)


def rows_of(plan: Plan, cell: Cell, names: Iterable[str] | None = None) -> list[Row]:
    """Rows that apply to a cell, of those named or of all that are not costly; an unknown name raises."""
    wanted = [n for n, r in ROWS.items() if not r.costly] if names is None else list(names)
    unknown = [n for n in wanted if n not in ROWS]
    if unknown:
        raise ValueError(f'there is no row "{unknown[0]}"; there are: {", ".join(ROWS)}')
    return [
        row
        for row in map(ROWS.__getitem__, wanted)
        if (row.new if cell.new else row.known) and (plan.traits.shape[1] or not row.traits)
    ]
