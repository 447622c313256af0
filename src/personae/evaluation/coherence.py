"""How coherent groups of people are: what a group's answers tell about other answers of its members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from personae.data.survey import Survey, look_up
from personae.evaluation.plan import Pairs

# with how many answers' weight a group's mean leans on the question's; the first of equally good ones is taken
_LEAN = (np.inf, 2560, 1280, 640, 320, 160, 80, 40, 20, 10, 5, 2.5, 0)


def coherence(train: Survey, heldout: Pairs, groups: pd.Series, topic: Sequence[str] | None = None) -> pd.DataFrame:
    """Predict held-out answers by nothing but the group, cohorts, traits and random groups alike.

    Parameters
    ----------
    train : Survey
        The answers that groups are known by.
    heldout : Pairs
        Answers to the same questions, which no group was made from.
    groups : Series
        Respondent id to group; who is missing, or has a missing label, is in no group.
    topic : sequence of str, optional
        Ids of the questions that count; all of them where None.

    Returns
    -------
    DataFrame, one row
        groups, people (of the training part, with a group), explained (share of the variance, at most 1, below 0 where
        groups mislead), accuracy (of the group's most frequent option), majority (accuracy of the question's), answers
        (held out), left_out (held-out answers without a group or without a training answer to the question).

    Raises
    ------
    ValueError
        A respondent is in two groups, or no held-out answer can be predicted.
    SurveyError
        A question of the topic is unknown.

    Notes
    -----
    Options lie on [0, 1]. With x_q the mean training answer to a question and x_gq, n_gq that of a group and the
    number of its answers, the group's prediction is

        m_gq = (n_gq x_gq + a x_q) / (n_gq + a),    explained = 1 - sum (x - m_gq)^2 / sum (x - x_q)^2.

    Both means are those of people who have a group. a is one number for all questions: for either half of the people
    the one that predicts the held-out answers of the other half best. So many small groups are not at a disadvantage,
    groups that have nothing in common predict x_q, and cohorts, whose training means are further apart than their
    members because they were made from the same answers, are not blamed for it. (From training answers alone a would
    be too small for cohorts.) Where a group has no single most frequent option, or no answers, the question's is taken.

    Examples
    --------
    >>> from personae import load_sample
    >>> from personae.evaluation.plan import make_plan
    >>> plan = make_plan(load_sample())
    >>> party = load_sample().traits["partyid"]
    >>> found = [coherence(plan.train, plan.cells["seen"].pairs, g) for g in (party, random_groups(party))]
    >>> pd.concat(found, keys=["party", "random"])[["groups", "explained", "accuracy", "majority"]].round(3)
              groups  explained  accuracy  majority
    party  0       8      0.045     0.589     0.578
    random 0       8      0.000     0.574     0.578
    """
    if not groups.index.is_unique:
        raise ValueError(f'"{groups.index[groups.index.duplicated()][0]}" is in two groups; give everybody one')
    code = pd.factorize(groups)[0]
    members = _codes(code, groups.index, train.respondent_ids)  # group of each respondent, -1 for none
    counted = np.full(train.n_questions + 1, topic is None)  # the last is for questions that were never asked
    counted[train.question_index([] if topic is None else topic)] = True

    known = (members[train.respondent] >= 0) & counted[train.question]
    key = members[train.respondent] * train.n_questions + train.question
    fitted = _Fitted(key[known], train.option[known], train.n_options)

    group = _codes(code, groups.index, heldout.respondents)
    question = train.question_ids.get_indexer(pd.Index([q.id for q in heldout.questions]))[heldout.question]
    wanted = counted[question]
    can = wanted & (group >= 0) & (question >= 0) & (fitted.asked[question] > 0)
    if not can.any():
        raise ValueError(
            f"none of {wanted.sum():,} held-out answers can be predicted from {code.max(initial=-1) + 1} groups; their "
            "people need a group, and their questions training answers of people who have one"
        )
    group, question, option = group[can], question[can], heldout.option[can]
    position = option / (train.n_options - 1)[question]
    n, away, mode = fitted.of_groups(group, question)
    rest = position - fitted.mean[question]
    error, variance = (rest - _leaning(n, away, rest, _half(heldout.respondents[can]))) ** 2, rest**2
    return pd.DataFrame(
        {
            "groups": [len(np.unique(members[members >= 0]))],
            "people": [(members >= 0).sum()],
            "explained": [1 - error.sum() / variance.sum() if variance.any() else np.nan],
            "accuracy": [(mode == option).mean()],
            "majority": [(fitted.mode[question] == option).mean()],
            "answers": [len(option)],
            "left_out": [wanted.sum() - len(option)],
        }
    )


def random_groups(groups: pd.Series, seed: int = 0) -> pd.Series:
    """The same labels dealt out at random: groups of the same sizes that have nothing in common.

    Who has no label keeps none, so that both groupings are of the same people.

    Examples
    --------
    >>> random_groups(pd.Series(["left", "left", "right", None], index=["ann", "bob", "cem", "dan"])).tolist()
    ['right', 'left', 'left', nan]
    """
    order = np.arange(len(groups))
    labelled = groups.notna().to_numpy()
    order[labelled] = np.random.default_rng(seed).permutation(order[labelled])
    return groups.iloc[order].set_axis(groups.index)


def crossed(traits: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """A group for every combination of some traits that occurs; a trait that is missing counts as "missing".

    Raises
    ------
    SurveyError
        A trait is unknown.

    Examples
    --------
    >>> traits = pd.DataFrame({"side": ["left", "right"], "age": ["30-49", None]}, index=["ann", "bob"])
    >>> crossed(traits, ["side", "age"]).to_dict()
    {'ann': 'side: left; age: 30-49', 'bob': 'side: right; age: missing'}
    """
    if not len(columns):
        raise ValueError("there are no traits to cross; name at least one")
    look_up(traits.columns, columns, "trait")
    known = traits[list(columns)].astype(object).fillna("missing")
    cells = [[f"{name}: {value}" for value in known[name]] for name in columns]
    return pd.Series(["; ".join(row) for row in zip(*cells, strict=True)], index=traits.index)


class _Fitted:
    """Means and most frequent options of questions and of cells, a cell being a question in a group.

    Parameters
    ----------
    key : int array, shape (n,)
        group * Q + question of each training answer.
    option : int array, shape (n,)
    n_options : int array, shape (Q,)
    """

    def __init__(self, key: np.ndarray, option: np.ndarray, n_options: np.ndarray) -> None:
        width = int(n_options.max())
        self.cells, at = np.unique(key, return_inverse=True)  # only those that have answers, ascending
        question = self.cells % len(n_options)
        counts = np.bincount(at * width + option, minlength=len(self.cells) * width).reshape(-1, width)  # (C, K)
        of_all = np.zeros((len(n_options), width), np.int64)
        np.add.at(of_all, question, counts)
        position = np.arange(width) / (n_options - 1)[:, None]  # (Q, K)
        self.n, self.asked = counts.sum(1), of_all.sum(1)
        self.mean = (of_all * position).sum(1) / np.maximum(self.asked, 1)
        self.mode = of_all.argmax(1)

        self.away = (counts * position[question]).sum(1) / self.n - self.mean[question]
        tied = (counts == counts.max(1, keepdims=True)).sum(1) > 1
        self.cell_mode = np.where(tied, self.mode[question], counts.argmax(1))

    def of_groups(self, group: np.ndarray, question: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a group at a question: answers, how far their mean is from the question's, most frequent option."""
        key = group * len(self.mean) + question
        at = np.minimum(np.searchsorted(self.cells, key), len(self.cells) - 1)
        there = self.cells[at] == key
        mode = np.where(there, self.cell_mode[at], self.mode[question])
        return np.where(there, self.n[at], 0), np.where(there, self.away[at], 0.0), mode


def _leaning(n: np.ndarray, away: np.ndarray, rest: np.ndarray, half: np.ndarray) -> np.ndarray:
    """n / (n + a) away (n,), where a has predicted ``rest`` best in the other half."""
    shrunk = np.stack([n / (np.maximum(n, 1) + a) * away for a in _LEAN])  # no answers, no matter
    error = (rest - shrunk) ** 2
    best = [error[:, half != side].sum(1).argmin() for side in (0, 1)]
    return np.where(half == 0, shrunk[best[0]], shrunk[best[1]])


def _half(respondents: np.ndarray) -> np.ndarray:
    """0 or 1 for each answer, the same for all of a person's."""
    person, names = pd.factorize(respondents, sort=True)
    return (np.random.default_rng(0).permutation(len(names)) % 2)[person]


def _codes(code: np.ndarray, index: pd.Index, respondents: np.ndarray | pd.Index) -> np.ndarray:
    """The group of each respondent, -1 where there is none."""
    return np.append(code, -1)[index.get_indexer(pd.Index(respondents))]
