from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from personae.data.survey import Question, Survey
from personae.evaluation import table
from personae.evaluation.holdout import HoldOut, Pairs, hold_out
from personae.evaluation.table import Fitted, compare, interval
from personae.lm.tiny import tiny_lm
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel
from personae.people.text_opinion_model import TextOpinionModel
from personae.steering import persona_prompt
from personae.steering.persona_prompt import PersonaPrompt
from personae.steering.text import TextPrompt

STEERED = ["steered LM, shuffled people", "steered LM, cohort", "steered LM, person"]
KNOWN = ["majority", "opinion model", "raw LM", "LM with traits as text", *STEERED]
NEW = ["uniform", "opinion model on the question's text", "raw LM", "LM with traits as text", *STEERED]


def make_survey(traits: bool = True) -> Survey:
    rng = np.random.default_rng(0)
    sizes = [2, 3, 2, 4, 2, 2, 3, 2]
    side = np.repeat([1.0, -1.0], 40)[:, None]
    latent = side * np.array([1, -1] * 4) + 0.7 * rng.standard_normal((80, 8))
    said = np.column_stack(
        [np.searchsorted(np.quantile(x, np.arange(1, k) / k), x) for x, k in zip(latent.T, sizes, strict=True)]
    )
    person, question = np.nonzero(rng.random((80, 8)) < 0.9)
    about = pd.DataFrame({"side": np.where(side[:, 0] > 0, "left", "right")})
    return Survey(
        [Question(f"q{j}", f"Do you like number {j}?", tuple("abcd"[:k])) for j, k in enumerate(sizes)],
        [f"r{i}" for i in range(80)],
        person,
        question,
        said[person, question],
        about if traits else None,
    )


@pytest.fixture(scope="module")
def held() -> HoldOut:
    return hold_out(make_survey(), 0.25, 0.25)


@pytest.fixture(scope="module")
def fitted(held) -> Fitted:
    people = OpinionModel(n_components=1).fit(held.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persona_prompt, "TextOpinionModel", partial(TextOpinionModel, width=16, steps=60))
        steerer = PersonaPrompt(tiny_lm("llama"), steps=30).fit(held.train, people, progress=False)
    return Fitted(held.train, people, Cohorts(k=2).fit(people, held.train), steerer)


@pytest.fixture(scope="module")
def known(fitted, held) -> pd.DataFrame:
    return compare(fitted, held.seen, n_text=20).set_index("row")


@pytest.fixture(scope="module")
def new(fitted, held) -> pd.DataFrame:
    return compare(fitted, held.new, n=100, n_text=20).set_index("row")


def rows_of(fitted: Fitted, pairs: Pairs) -> np.ndarray:
    place = {r: i for i, r in enumerate(fitted.people.respondent_ids_)}
    return np.array([place[r] for r in pairs.respondents])


def figures(pairs: Pairs, p: list[np.ndarray]) -> tuple[float, float]:
    """Accuracy and NLL, answer by answer."""
    right = [float(row.argmax() == k) for row, k in zip(p, pairs.option, strict=True)]
    return np.mean(right), np.mean([-np.log(row[k]) for row, k in zip(p, pairs.option, strict=True)])


def test_rows(known, new):
    assert known.index.tolist() == KNOWN
    assert new.index.tolist() == NEW


def test_how_many_answers(known, new, held):
    assert (known["n"].drop("LM with traits as text") == len(held.seen)).all()
    assert (new["n"].drop("LM with traits as text") == 100).all()
    assert known["n"]["LM with traits as text"] == new["n"]["LM with traits as text"] == 20


def test_the_interval_is_around_the_figure(known, new):
    for result in (known, new):
        assert (result["low"] <= result["accuracy"]).all()
        assert (result["accuracy"] <= result["high"]).all()
        assert (result["low"] < result["high"]).all()


def test_the_majority_by_hand(known, held):
    counts = {q.id: np.zeros(len(q.options)) for q in held.train.questions}
    for j, k in zip(held.train.question, held.train.option, strict=True):
        counts[held.train.questions[j].id][k] += 1
    p = [(counts[held.seen.questions[j].id] + 0.5) for j in held.seen.question]
    accuracy, nll = figures(held.seen, [c / c.sum() for c in p])
    assert known["accuracy"]["majority"] == pytest.approx(accuracy)
    assert known["nll"]["majority"] == pytest.approx(nll)


def test_the_opinion_model_by_hand(known, fitted, held):
    p = []
    for who, j in zip(held.seen.respondents, held.seen.question, strict=True):
        vector = fitted.people.vectors_[list(fitted.people.respondent_ids_).index(who)]
        p.append(fitted.people.predict_proba(vector, [held.seen.questions[j].id])[0, 0])
    accuracy, nll = figures(held.seen, p)
    assert known["accuracy"]["opinion model"] == pytest.approx(accuracy)
    assert known["nll"]["opinion model"] == pytest.approx(nll, rel=1e-4)


def test_uniform_by_hand(new, held):
    some = held.new.sample(100, 0)
    sizes = [len(some.questions[j].options) for j in some.question]
    assert new["nll"]["uniform"] == pytest.approx(np.log(sizes).mean())


@pytest.mark.parametrize("part", ["known", "new"])
def test_lm_rows_by_hand(part, request, fitted, held):
    result = request.getfixturevalue(part)
    pairs = held.seen if part == "known" else held.new.sample(100, 0)
    questions, steerer = list(pairs.questions), fitted.steerer
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
    told = TextPrompt(steerer.lm_, lambda p: f"Answer as this person. side: {sides[p.name]}.").fit()
    sides = fitted.train.traits["side"]
    p = told.predict_proba([fitted.people[r] for r in few.respondents], questions)
    assert result["nll"]["LM with traits as text"] == pytest.approx(
        figures(few, list(p[np.arange(20), few.question]))[1], abs=1e-4
    )


def test_the_text_model_by_hand(new, fitted, held):
    some = held.new.sample(100, 0)
    from personae.lm.prompts import letters_prompt
    from personae.lm.reading import prepare

    p = []
    for who, j in zip(rows_of(fitted, some), some.question, strict=True):
        q = some.questions[j]
        h = prepare(fitted.steerer.lm_, [letters_prompt(fitted.steerer.lm_, q.text, q.options, "late")]).representation
        (row,) = fitted.steerer.text_model_.predict_proba(
            fitted.people.vectors_[who : who + 1], h.numpy(), [len(q.options)]
        )[0]
        p.append(row)
    accuracy, nll = figures(some, p)
    assert new["nll"]["opinion model on the question's text"] == pytest.approx(nll, abs=1e-3)
    assert new["accuracy"]["opinion model on the question's text"] == pytest.approx(accuracy, abs=0.02)


def test_with_people_shuffled_nobody_is_known(known, fitted, held, monkeypatch):
    assert known["accuracy"]["steered LM, person"] > known["accuracy"]["steered LM, shuffled people"] + 0.1
    assert known["nll"]["steered LM, person"] < known["nll"]["steered LM, shuffled people"]
    asked = []

    def watching(vectors, questions, by="letters"):
        asked.append(vectors.clone())
        return np.full((len(vectors), 1, len(questions[0].options)), 1 / len(questions[0].options))

    monkeypatch.setattr(fitted.steerer, "predict_proba_vectors", watching)
    compare(fitted, held.seen, n_text=1)
    assert len(asked) == 6  # one pass a question serves the three sets of people
    shuffled, _, person = (torch.cat([a.chunk(3)[i] for a in asked])[:, 0].numpy() for i in range(3))
    given = fitted.people.vectors_[rows_of(fitted, held.seen), 0]
    assert sorted(person) == pytest.approx(sorted(given))
    assert np.mean(shuffled == person) < 0.2
    assert set(np.round(shuffled, 5)) <= set(np.round(fitted.people.vectors_[:, 0], 5))
    assert len(set(shuffled)) > 20  # somebody else each time, not one person for all


def test_deterministic_and_seeded(known, fitted, held):
    again = compare(fitted, held.seen, n_text=20).set_index("row")
    pd.testing.assert_frame_equal(again, known)
    other = compare(fitted, held.seen, n_text=20, seed=1).set_index("row")
    assert other["nll"]["LM with traits as text"] != known["nll"]["LM with traits as text"]
    assert other["nll"]["steered LM, shuffled people"] != known["nll"]["steered LM, shuffled people"]
    assert other["nll"]["steered LM, person"] == pytest.approx(known["nll"]["steered LM, person"])


def test_without_traits_and_without_the_text_model(held, fitted, monkeypatch):
    train = Survey(
        fitted.train.questions,
        fitted.train.respondent_ids,
        fitted.train.respondent,
        fitted.train.question,
        fitted.train.option,
    )
    monkeypatch.setattr(fitted.steerer, "text_model_", None)  # as after loading
    bare = Fitted(train, fitted.people, fitted.cohorts, fitted.steerer)
    assert compare(bare, held.seen, n=20)["row"].tolist() == [r for r in KNOWN if "traits" not in r]
    assert compare(bare, held.new, n=20)["row"].tolist() == ["uniform", "raw LM", *STEERED]


def test_known_and_new_questions_are_not_mixed(fitted, held):
    both = Pairs(
        np.concatenate([held.seen.respondents, held.new.respondents]),
        held.seen.questions,
        np.concatenate([held.seen.question, held.new.question]),
        np.concatenate([held.seen.option, held.new.option]),
    )
    with pytest.raises(ValueError, match="mix questions that were asked in training with new ones"):
        compare(fitted, both)


def test_nothing_to_compare(fitted, held):
    with pytest.raises(ValueError, match="no answers to compare"):
        compare(fitted, held.seen.sample(0, 0))


# intervals -------------------------------------------------------------------------------------------------------
def test_the_interval_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        ability = rng.uniform(0.3, 0.9, 60)  # people differ, so that their answers hang together
        who = np.repeat(np.arange(60), 10)
        low, high = interval(rng.random(600) < ability[who], who, seed=trial)
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_answers_of_one_person_count_as_one():
    """A hundred equal answers of each of ten people say no more than one answer of each."""
    said = np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 1])
    assert interval(said, np.arange(10)) == interval(np.repeat(said, 100), np.repeat(np.arange(10), 100))


def test_fewer_people_wider_interval():
    rng = np.random.default_rng(0)
    said = (rng.random(1000) < 0.6).astype(float)
    widths = [np.subtract(*interval(said[:n], np.arange(n))[::-1]) for n in (1000, 100, 20)]
    assert widths == sorted(widths)
    assert widths[2] > 3 * widths[0]
    ordinary = 2 * 1.96 * said.std() / np.sqrt(1000)
    assert widths[0] == pytest.approx(ordinary, rel=0.15)


def test_level_and_seed():
    said, who = np.random.default_rng(0).random(100), np.arange(100)
    low, high = interval(said, who)
    inner_low, inner_high = interval(said, who, level=0.5)
    assert low < inner_low < said.mean() < inner_high < high
    assert interval(said, who) == (low, high) != interval(said, who, seed=1)


def test_one_person_or_one_value():
    assert interval(np.array([1.0, 0.0]), np.array(["ann", "ann"])) == (0.5, 0.5)
    assert interval(np.ones(7), np.arange(7)) == (1.0, 1.0)
    assert table.interval(np.array([True, False]), np.array([0, 1]))[0] == 0.0
