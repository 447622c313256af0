from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from personae.evaluation import rows as evaluation_rows
from personae.evaluation.fitted import Fitted
from personae.evaluation.plan import Cell, Pairs, Plan, make_plan
from personae.evaluation.pool import combine
from personae.evaluation.rows import ROWS
from personae.evaluation.table import Run, Scored, compare
from personae.lm.tiny import tiny_lm
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.paper_factorization import PaperFactorization
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import persona_prompt
from personae.steering.persona_prompt import PersonaPrompt
from personae.steering.text import TextPrompt

STEERED = ["steered LM, shuffled people", "steered LM, cohort", "steered LM, person"]
TOLD = ["raw LM", "LM with traits as text"]
KNOWN = ["majority", "trait-group majority", "cohort majority", "opinion model", *TOLD, *STEERED]
NEW = ["uniform", "opinion model on the question's text", *TOLD, *STEERED]


@pytest.fixture(scope="module")
def plan(two_camps) -> Plan:
    return make_plan(two_camps, 0.25, questions=0.25).sample(200)


@pytest.fixture(scope="module")
def fitted(plan) -> Fitted:
    people = OpinionModel(n_components=1).fit(plan.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persona_prompt, "TextOpinionModel", partial(TextOpinionModel, width=16, steps=60))
        steerer = PersonaPrompt(tiny_lm("llama"), steps=30).fit(plan.train, people, progress=False)
    ready = {"people": people, "cohorts": Cohorts(k=2).fit(people, plan.train), "text_model": steerer.text_model_}
    return Fitted(plan, steerer.lm_, steerers={"persona prompt": steerer}, **ready)


@pytest.fixture(scope="module")
def steerer(fitted) -> PersonaPrompt:
    return fitted.steerer("persona prompt", "persona_prompt")


@pytest.fixture(scope="module")
def seen(plan) -> Pairs:
    return plan.cells["seen"].pairs


@pytest.fixture(scope="module")
def asked_new(plan) -> Pairs:
    return plan.cells["new"].pairs


@pytest.fixture(scope="module")
def known(fitted, plan) -> pd.DataFrame:
    return compare(fitted, plan.cells["seen"], KNOWN, 20).set_index("row")


@pytest.fixture(scope="module")
def new(fitted, plan) -> pd.DataFrame:
    return compare(fitted, plan.cells["new"], NEW, 20).set_index("row")


def rows_of(fitted: Fitted, pairs: Pairs) -> np.ndarray:
    place = {r: i for i, r in enumerate(fitted.people.respondent_ids_)}
    return np.array([place[r] for r in pairs.respondents])


def figures(pairs: Pairs, p: list[np.ndarray]) -> tuple[float, float]:
    """Accuracy and NLL, answer by answer."""
    right = [(row[k] == row.max()) / (row == row.max()).sum() for row, k in zip(p, pairs.option, strict=True)]
    return np.mean(right), np.mean([-np.log(row[k]) for row, k in zip(p, pairs.option, strict=True)])


def test_rows(known, new):
    assert known.index.tolist() == KNOWN
    assert new.index.tolist() == NEW


def test_how_many_answers(known, new, seen):
    assert (known["n"].drop("LM with traits as text") == len(seen)).all()
    assert (new["n"].drop("LM with traits as text") == 200).all() or new["n"].max() < 200
    assert known["n"]["LM with traits as text"] == new["n"]["LM with traits as text"] == 20


def test_the_interval_is_around_the_figure(known, new):
    for result in (known, new):
        assert (result["low"] <= result["accuracy"]).all()
        assert (result["accuracy"] <= result["high"]).all()
        assert (result["low"] < result["high"]).all()


def test_the_majority_by_hand(known, plan, seen):
    counts = {q.id: np.zeros(len(q.options)) for q in plan.train.questions}
    for j, k in zip(plan.train.question, plan.train.option, strict=True):
        counts[plan.train.questions[j].id][k] += 1
    p = [(counts[seen.questions[j].id] + 0.5) for j in seen.question]
    accuracy, nll = figures(seen, [c / c.sum() for c in p])
    assert known["accuracy"]["majority"] == pytest.approx(accuracy)
    assert known["nll"]["majority"] == pytest.approx(nll)


def test_the_opinion_model_by_hand(known, fitted, seen):
    p = []
    for who, j in zip(seen.respondents, seen.question, strict=True):
        vector = fitted.people.vectors_[list(fitted.people.respondent_ids_).index(who)]
        p.append(fitted.people.predict_proba(vector, [seen.questions[j].id])[0, 0])
    accuracy, nll = figures(seen, p)
    assert known["accuracy"]["opinion model"] == pytest.approx(accuracy)
    assert known["nll"]["opinion model"] == pytest.approx(nll, rel=1e-4)


def test_uniform_by_hand(new, asked_new):
    some = asked_new
    sizes = [len(some.questions[j].options) for j in some.question]
    assert new["nll"]["uniform"] == pytest.approx(np.log(sizes).mean())


@pytest.mark.parametrize("part", ["known", "new"])
def test_lm_rows_by_hand(part, request, fitted, steerer, plan, seen, asked_new):
    result = request.getfixturevalue(part)
    pairs = seen if part == "known" else asked_new
    questions = list(pairs.questions)
    who = rows_of(fitted, pairs)
    vectors = torch.as_tensor(fitted.people.vectors_)
    person = steerer.predict_proba_vectors(vectors, questions)
    centroids = steerer.predict_proba(list(fitted.cohorts), questions)[fitted.cohorts.labels_]
    raw = TextPrompt(steerer.lm_).fit().predict_proba([fitted.people["r0"]], questions)[[0] * len(vectors)]
    for name, p in (("steered LM, person", person), ("steered LM, cohort", centroids), ("raw LM", raw)):
        accuracy, nll = figures(pairs, list(p[who, pairs.question]))
        assert result["accuracy"][name] == pytest.approx(accuracy), name
        assert result["nll"][name] == pytest.approx(nll, abs=1e-4), name
    few = pairs.sample(20, 0)
    told = TextPrompt(steerer.lm_, lambda p, q: f"Answer as this person. side: {sides[p.name]}.").fit()
    sides = fitted.train.traits["side"]
    p = told.predict_proba([fitted.people[r] for r in few.respondents], questions)
    assert result["nll"]["LM with traits as text"] == pytest.approx(
        figures(few, list(p[np.arange(20), few.question]))[1], abs=1e-4
    )


def test_the_text_model_by_hand(new, fitted, steerer, asked_new):
    some = asked_new
    from personae.lm.prompts import letters_prompt
    from personae.lm.reading import prepare

    p = []
    for who, j in zip(rows_of(fitted, some), some.question, strict=True):
        q = some.questions[j]
        h = prepare(steerer.lm_, [letters_prompt(steerer.lm_, q.text, q.options, "late")]).representation
        (row,) = steerer.text_model_.predict_proba(fitted.people.vectors_[who : who + 1], h.numpy(), [len(q.options)])[
            0
        ]
        p.append(row)
    accuracy, nll = figures(some, p)
    assert new["nll"]["opinion model on the question's text"] == pytest.approx(nll, abs=1e-3)
    assert new["accuracy"]["opinion model on the question's text"] == pytest.approx(accuracy, abs=0.02)


def test_with_people_shuffled_nobody_is_known(known, fitted, plan, seen, steerer, monkeypatch):
    assert known["accuracy"]["steered LM, person"] > known["accuracy"]["steered LM, shuffled people"] + 0.1
    assert known["nll"]["steered LM, person"] < known["nll"]["steered LM, shuffled people"]
    asked = []

    def watching(vectors, questions, by="letters", covariances=None):
        asked.append(vectors.clone())
        return np.full((len(vectors), 1, len(questions[0].options)), 1 / len(questions[0].options))

    monkeypatch.setattr(steerer, "predict_proba_vectors", watching)
    fitted = Fitted(
        plan, steerer.lm_, steerers={"persona prompt": steerer}, people=fitted.people, cohorts=fitted.cohorts
    )
    compare(fitted, plan.cells["seen"], STEERED)
    assert len(asked) == 6  # one pass a question serves all sets of people
    from personae.evaluation.rows import _stand_ins

    sets = _stand_ins(fitted, plan.cells["seen"], ())
    given = fitted.people.vectors_[rows_of(fitted, seen)]
    own, shuffled = (sets[name].vectors[sets[name].row] for name in ("person", "shuffled"))
    assert np.array_equal(own, given)
    assert np.mean(shuffled[:, 0] == given[:, 0]) < 0.2
    assert set(shuffled[:, 0]) <= set(fitted.people.vectors_[:, 0])
    assert len(set(shuffled[:, 0])) > 20  # somebody else each time, not one person for all
    stranger = dict(zip(seen.respondents, shuffled[:, 0], strict=True))
    assert all(stranger[r] == x for r, x in zip(seen.respondents, shuffled[:, 0], strict=True))


def test_trait_groups_stand_for_their_members(fitted, plan, seen):
    from personae.evaluation.rows import _stand_ins

    found = _stand_ins(fitted, plan.cells["seen"], ())["trait group"]
    sides = plan.traits["side"]
    for value in ("left", "right"):
        everybody = fitted.people.vectors_.mean(0)
        members = fitted.people.vectors_[(sides.loc[fitted.people.respondent_ids_] == value).to_numpy()]
        drawn = everybody + (members - everybody).sum(0) / (len(members) + 10)
        at = (sides.loc[seen.respondents] == value).to_numpy()
        vectors = found.vectors[found.row[at]]
        np.testing.assert_allclose(vectors, np.broadcast_to(drawn, vectors.shape), rtol=1e-4)


def test_the_majority_of_a_group_by_hand(known, plan, seen):
    train, sides = plan.train, plan.traits["side"]
    p = []
    for who, j in zip(seen.respondents, seen.question, strict=True):
        q = seen.questions[j]
        mine = [
            k
            for r, column, k in zip(train.respondent, train.question, train.option, strict=True)
            if train.questions[column].id == q.id and sides[train.respondent_ids[r]] == sides[who]
        ]
        everybody = train.option[train.question == train.question_index(q.id)[0]]
        share = np.bincount(everybody, minlength=len(q.options)) + 0.5
        counts = np.bincount(mine, minlength=len(q.options)) + 10 * share / share.sum()
        p.append(counts / counts.sum())
    accuracy, nll = figures(seen, p)
    assert known["accuracy"]["trait-group majority"] == pytest.approx(accuracy)
    assert known["nll"]["trait-group majority"] == pytest.approx(nll)


def test_the_same_call_the_same_table(known, fitted, plan):
    again = compare(fitted, plan.cells["seen"], KNOWN, 20).set_index("row")
    pd.testing.assert_frame_equal(again, known)


def test_without_traits(plan, fitted):
    bare = replace(plan, traits=plan.traits.iloc[:, :0])
    fitted = Fitted(bare, fitted.lm, steerers=fitted._steerers, people=fitted.people, cohorts=fitted.cohorts)
    assert compare(fitted, plan.cells["seen"], KNOWN)["row"].tolist() == [r for r in KNOWN if "trait" not in r]


def test_an_unknown_row_is_named(fitted, plan):
    with pytest.raises(ValueError, match='there is no row "majorty"; there are: uniform, majority'):
        compare(fitted, plan.cells["seen"], ["majorty"])


def test_nothing_to_compare(fitted, plan):
    with pytest.raises(ValueError, match="no answers to compare"):
        compare(fitted, plan.cells["seen"][np.arange(0)])


# people who were not fitted --------------------------------------------------------------------------------------
def test_unseen_people_are_known_by_what_is_given(fitted, two_camps):
    plan = make_plan(two_camps, 0.25, people=0.3, questions=0.25, given=(1, 4))
    others = Fitted(plan, fitted.lm, people=OpinionModel(n_components=1).fit(plan.train))
    found = {
        k: compare(others, plan.cells[f"unseen-{k}"], ["majority", "opinion model"]).set_index("row") for k in (1, 4)
    }
    assert found[1]["nll"]["majority"] == found[4]["nll"]["majority"]
    assert found[4]["nll"]["opinion model"] < found[4]["nll"]["majority"] - 0.01
    assert found[1]["nll"]["opinion model"] != found[4]["nll"]["opinion model"]


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if not (r.trained or r.slow) and n != "raw LM"])
def test_every_row_of_unseen_people_is_a_distribution(fitted, two_camps, name):
    plan = make_plan(two_camps, 0.25, people=0.2, questions=0.25, given=(3,))
    people = OpinionModel(n_components=1).fit(plan.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personae.evaluation.fitted.TextOpinionModel", partial(TextOpinionModel, width=16, steps=5))
        patch.setattr("personae.evaluation.fitted.PaperFactorization", partial(PaperFactorization, max_epochs=3))
        mine = Fitted(plan, fitted.lm, people=people, cohorts=Cohorts(k=2).fit(people, plan.train))
        for cell in plan.cells.values():
            for row in evaluation_rows.rows_of(plan, cell, [name]):
                if not row.possible(mine):
                    continue
                p = row.predict(mine, cell)
                np.testing.assert_allclose(p.sum(1), 1, atol=1e-3)
                n = np.array([len(q.options) for q in cell.pairs.questions])[cell.pairs.question]
                assert (p[np.arange(p.shape[1]) >= n[:, None]] == 0).all()


def test_somebody_of_whom_nothing_is_given_is_the_average_person(fitted, plan):
    people = fitted.people
    pairs = Pairs(np.array(["stranger"]), plan.train.questions, np.array([0]), np.array([0]))
    given = plan.train.select(respondents=plan.train.respondent_ids[:2])
    p = ROWS["opinion model"].predict(fitted, Cell("strangers", pairs, given))
    np.testing.assert_allclose(p, people.predict_proba(people.fold_in({}), plan.train.question_ids[0])[0], rtol=1e-5)


# scores ----------------------------------------------------------------------------------------------------------
def test_several_seeds_are_one_row(plan):
    cell = plan.cells["seen"]
    p = ROWS["uniform"].predict(None, cell).astype(float)
    q = combine([ROWS["majority"].predict(SimpleNamespace(train=plan.train), cell)], [1.0])
    at = np.arange(len(cell))
    one, other, both = (Scored(cell, [Run(at, x) for x in runs]) for runs in ([p], [q], [p, q]))
    figures = both.summary()
    assert figures["seeds"] == 2
    assert figures["nll"] == pytest.approx((one.summary()["nll"] + other.summary()["nll"]) / 2)
    assert figures["accuracy_a_seed"] == [one.summary()["accuracy"], other.summary()["accuracy"]]
    assert figures["low"] < figures["accuracy"] < figures["high"]


def test_a_difference_is_paired_on_what_both_predicted(plan):
    cell = plan.cells["seen"]
    p = ROWS["uniform"].predict(None, cell)
    whole, part = np.arange(len(cell)), np.arange(0, len(cell), 3)
    assert Scored(cell, [Run(whole, p)]).minus(Scored(cell, [Run(part, p[part])])) == {
        "accuracy": {"estimate": 0, "low": 0, "high": 0},
        "nll": {"estimate": 0, "low": 0, "high": 0},
        "n": len(part),
    }
