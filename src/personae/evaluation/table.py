"""One table that says what steering is worth: every row predicts the same held-out answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from personae.data.survey import Survey
from personae.evaluation.holdout import Pairs
from personae.lm.prompts import letters_prompt
from personae.lm.reading import prepare
from personae.people.persona import Persona
from personae.steering.text import TextPrompt, describe_by_traits

if TYPE_CHECKING:
    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel
    from personae.steering.persona_prompt import PersonaPrompt

_RESAMPLES = 1000


@dataclass(frozen=True)
class Fitted:
    """Everything that was fitted to the training part."""

    train: Survey
    people: OpinionModel
    cohorts: Cohorts
    steerer: PersonaPrompt


def compare(fitted: Fitted, pairs: Pairs, n: int = 2000, n_text: int = 300, seed: int = 0) -> pd.DataFrame:
    """Predict held-out answers in every way.

    Parameters
    ----------
    pairs : Pairs
        Of questions that were all asked in training, or of questions that were all new.
    n, n_text : int
        Answers a row; fewer for traits as text, which costs a whole pass an answer.

    Returns
    -------
    DataFrame
        row, accuracy, low, high (95 % interval by bootstrap over people), nll, n.
    """
    if len(pairs) == 0:
        raise ValueError("there are no answers to compare on; hold more out")
    some = pairs.sample(n, seed)
    known = set(fitted.train.question_ids)
    asked = [pairs.questions[j].id in known for j in np.unique(some.question)]
    if any(asked) != all(asked):
        raise ValueError("the answers mix questions that were asked in training with new ones; compare them apart")
    rows = _known_rows if all(asked) else _new_rows
    out = []
    for name, predict, few in rows(fitted, seed):
        which = some.sample(n_text, seed) if few else some
        right, nll = which.losses(predict(which))
        low, high = interval(right, which.respondents, seed)
        out.append(
            {"row": name, "accuracy": right.mean(), "low": low, "high": high, "nll": nll.mean(), "n": len(which)}
        )
    return pd.DataFrame(out)


Predict = Callable[[Pairs], np.ndarray]
Row = tuple[str, Predict, bool]


def _known_rows(fitted: Fitted, seed: int) -> Iterator[Row]:
    people, column = fitted.people, _columns(fitted.train)
    counts = fitted.train.option_counts() + 0.5 * (
        np.arange(fitted.train.n_options.max()) < fitted.train.n_options[:, None]
    )
    share = counts / counts.sum(1, keepdims=True)
    yield "majority", lambda p: share[column(p)], False
    yield "opinion model", lambda p: people.predict_proba_pairs(_rows(people, p), column(p)), False
    yield from _lm_rows(fitted, seed)


def _new_rows(fitted: Fitted, seed: int) -> Iterator[Row]:
    def uniform(pairs: Pairs) -> np.ndarray:
        n = np.array([len(q.options) for q in pairs.questions])
        return ((np.arange(n.max()) < n[:, None]) / n[:, None])[pairs.question]

    yield "uniform", uniform, False
    if fitted.steerer.text_model_ is not None:
        yield "opinion model on the question's text", lambda p: _by_text_model(fitted, p), False
    yield from _lm_rows(fitted, seed)


def _lm_rows(fitted: Fitted, seed: int) -> Iterator[Row]:
    people, steerer = fitted.people, fitted.steerer
    vectors = torch.as_tensor(people.vectors_).float()
    centroids = torch.as_tensor(np.stack([c.vector for c in fitted.cohorts])).float()
    raw = TextPrompt(steerer.lm_).fit()
    told = TextPrompt(steerer.lm_, describe_by_traits(fitted.train)).fit()

    shuffled = vectors[np.random.default_rng(seed).permutation(len(vectors))]
    sets = [shuffled, centroids[fitted.cohorts.labels_], vectors]
    done: dict[int, np.ndarray] = {}

    def steered(which: int) -> Predict:
        """All three sets share one pass a question, made when the first of them is asked for."""

        def predict(pairs: Pairs) -> np.ndarray:
            if id(pairs) not in done:
                done[id(pairs)] = _by_question(steerer, sets, _rows(people, pairs), pairs)
            return done[id(pairs)][which]

        return predict

    yield "raw LM", lambda p: _by_text(raw, p), False
    if fitted.train.traits.shape[1]:
        yield "LM with traits as text", lambda p: _by_text(told, p), True
    yield "steered LM, shuffled people", steered(0), False
    yield "steered LM, cohort", steered(1), False
    yield "steered LM, person", steered(2), False


def _columns(train: Survey) -> Callable[[Pairs], np.ndarray]:
    return lambda p: train.question_index([p.questions[j].id for j in p.question])


def _rows(people: OpinionModel, pairs: Pairs) -> np.ndarray:
    return people.respondent_ids_.get_indexer(pd.Index(pairs.respondents))


def _by_question(steerer: PersonaPrompt, sets: list[torch.Tensor], who: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Probabilities (sets, n, K): the people who answered a question share it, whatever vectors stand for them."""
    out = np.zeros((len(sets), len(pairs), max(len(q.options) for q in pairs.questions)), dtype=np.float32)
    for j in np.unique(pairs.question):
        at = np.flatnonzero(pairs.question == j)
        p = steerer.predict_proba_vectors(torch.cat([s[who[at]] for s in sets]), [pairs.questions[j]])[:, 0]
        out[:, at, : p.shape[1]] = p.reshape(len(sets), len(at), -1)
    return out


def _by_text(steerer: TextPrompt, pairs: Pairs) -> np.ndarray:
    """Every different (description, question) once, in batches."""
    prior = np.zeros(1)
    said = [steerer.describe(Persona(r, prior, np.eye(1), 1.0)) if steerer.describe else "" for r in pairs.respondents]
    wanted = list(zip(said, pairs.question.tolist(), strict=True))
    different = sorted(set(wanted))
    questions = [pairs.questions[j] for _, j in different]
    p = dict(zip(different, steerer.predict_letters([s for s, _ in different], questions), strict=True))
    width = max(len(q.options) for q in pairs.questions)
    return np.stack([np.pad(p[w], (0, width - len(p[w]))) for w in wanted])


def _by_text_model(fitted: Fitted, pairs: Pairs) -> np.ndarray:
    steerer = fitted.steerer
    assert steerer.text_model_ is not None
    columns = np.unique(pairs.question)
    asked = [pairs.questions[j] for j in columns]
    prompts = [letters_prompt(steerer.lm_, q.text, q.options, steerer.placement_) for q in asked]
    h = prepare(steerer.lm_, prompts).representation.cpu().numpy()
    who = _rows(fitted.people, pairs)
    p = steerer.text_model_.predict_proba(fitted.people.vectors_, h, [len(q.options) for q in asked])
    return p[who, np.searchsorted(columns, pairs.question)]


def interval(values: np.ndarray, groups: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of a mean over answers, resampling people: a person's answers are not independent.

    Parameters
    ----------
    values : array, shape (n,)
    groups : array, shape (n,)
        The person of each value.

    Examples
    --------
    >>> right = np.tile([1, 1, 0, 1], 50)
    >>> low, high = interval(right, np.arange(200))  # two hundred people
    >>> bool(0.68 < low < 0.72 and 0.78 < high < 0.82)
    True
    >>> low, high = interval(right, np.arange(200) // 20)  # ten people, who are all alike
    >>> low == high == 0.75
    True
    """
    _, person = np.unique(groups, return_inverse=True)
    total, count = np.bincount(person, values), np.bincount(person)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), _RESAMPLES)
    means = (weights @ total) / (weights @ count)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
