from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.people.opinion_model import OpinionModel
from personae.people.text_opinion_model import PersonContext, TextOpinionModel


@pytest.fixture(scope="module")
def world() -> tuple[Survey, np.ndarray]:
    """Questions whose embeddings are their true factors, seen through a random map, plus noise."""
    rng = np.random.default_rng(0)
    n, q, d, k = 300, 60, 2, 4
    u, f = rng.standard_normal((n, d)), rng.standard_normal((q, d))
    latent = u @ f.T + 0.5 * rng.standard_normal((n, q))
    said = np.searchsorted(np.quantile(latent, np.arange(1, k) / k), latent)
    person, question = np.nonzero(np.ones((n, q)))
    options = tuple(f"level {i}" for i in range(k))
    survey = Survey(
        [Question(f"q{j}", f"Question {j}?", options) for j in range(q)],
        [f"r{i}" for i in range(n)],
        person,
        question,
        said.ravel(),
    )
    embeddings = f @ rng.standard_normal((d, 20)) + 0.1 * rng.standard_normal((q, 20))
    return survey, embeddings.astype(np.float32)


@pytest.fixture(scope="module")
def asked(world) -> Survey:
    """The fifty questions that are learned from; ten are left out."""
    return world[0].select(questions=[f"q{j}" for j in range(50)])


@pytest.fixture(scope="module")
def known(asked) -> OpinionModel:
    return OpinionModel(n_components=2).fit(asked)


@pytest.fixture(scope="module")
def model(world, asked, known) -> TextOpinionModel:
    return TextOpinionModel(width=32, steps=300).fit(asked, known, world[1][:50])


def _said(survey: Survey, columns: range) -> np.ndarray:
    wide = np.empty((survey.n_respondents, survey.n_questions), dtype=int)
    wide[survey.respondent, survey.question] = survey.option
    return wide[:, columns]


def _nll(p: np.ndarray, said: np.ndarray) -> float:
    return float(-np.log(np.take_along_axis(p, said[..., None], -1)).mean())


def test_answers_to_questions_nobody_was_asked(world, known, model):
    survey, embeddings = world
    p = model.predict_proba(known.vectors_, embeddings[50:], [4] * 10)
    said = _said(survey, range(50, 60))
    assert p.shape == (300, 10, 4)
    assert (p.argmax(-1) == said).mean() > 0.4  # chance is a quarter
    assert _nll(p, said) < np.log(4) - 0.2
    # It is the person and the question that tell: with either mixed up nothing is known.
    assert _nll(np.roll(p, 1, 0), said) > np.log(4)
    assert _nll(np.roll(p, 1, 1), said) > np.log(4)


def test_close_to_its_teacher_on_questions_asked(world, known, model):
    p = model.predict_proba(known.vectors_, world[1][:50], [4] * 50, known=True)
    assert np.abs(p - known.predict_proba(known.vectors_)).mean() < 0.1
    assert len(model.loss_) == 3
    assert model.loss_[-1] < model.loss_[0]


def test_personas_are_their_vectors(known, model, world):
    people = [known["r3"], known.persona(["r1", "r2"])]
    p = model.predict_proba(people, world[1][50:], [4] * 10)
    np.testing.assert_array_equal(p, model.predict_proba(np.stack([q.vector for q in people]), world[1][50:], [4] * 10))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 11])
def test_any_number_of_options(world, known, model, n):
    p = model.predict_proba(known.vectors_, world[1][50:], [n] * 10)
    assert p.shape == (300, 10, n)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    # The ends of the scale are the ends, however finely it is divided: the same people lean the same way.
    lean = (p @ np.linspace(0, 1, n)).ravel()
    coarse = (model.predict_proba(known.vectors_, world[1][50:], [4] * 10) @ np.linspace(0, 1, 4)).ravel()
    assert np.corrcoef(lean, coarse)[0, 1] > 0.9


def test_options_of_a_question_do_not_depend_on_its_neighbours(world, known, model):
    together = model.predict_proba(known.vectors_, world[1][50:53], [2, 6, 3])
    assert together.shape == (300, 3, 6)
    for j, n in enumerate([2, 6, 3]):
        (alone,) = model.predict_proba(known.vectors_[:1], world[1][50 + j : 51 + j], [n])[0]
        np.testing.assert_allclose(together[0, j, :n], alone, atol=1e-6)
        assert (together[:, j, n:] == 0).all()


def test_learns_from_questions_of_different_length():
    rng = np.random.default_rng(1)
    sizes = [2, 5, 3, 4]
    said = np.column_stack([rng.integers(0, k, 80) for k in sizes])
    person, question = np.nonzero(np.ones_like(said))
    survey = Survey(
        [Question(f"q{j}", "?", tuple("abcde"[:k])) for j, k in enumerate(sizes)],
        [f"r{i}" for i in range(80)],
        person,
        question,
        said.ravel(),
    )
    people = OpinionModel(n_components=1).fit(survey)
    model = TextOpinionModel(width=8, steps=30).fit(survey, people, rng.standard_normal((4, 6)))
    assert np.isfinite(model.loss_).all()
    p = model.predict_proba(people.vectors_, rng.standard_normal((4, 6)), sizes)
    assert [(row > 0).sum() for row in p[0]] == sizes


def test_same_seed_same_weights(world, asked, known):
    def weights(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)  # what the caller drew before must not matter
        return (
            TextOpinionModel(width=8, steps=20, random_state=seed)
            .fit(asked, known, world[1][:50])
            .network_.state_dict()
        )

    first, again, other = weights(0, 1), weights(0, 2), weights(1, 1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["person.0.weight"], other["person.0.weight"])


def test_random_numbers_of_the_caller_are_left_alone(world, asked, known):
    before = torch.get_rng_state()
    TextOpinionModel(width=8, steps=3).fit(asked, known, world[1][:50])
    assert torch.equal(torch.get_rng_state(), before)


def test_no_dropout_once_fitted(world, known, model):
    p, again = (model.predict_proba(known.vectors_, world[1][50:], [4] * 10) for _ in range(2))
    np.testing.assert_array_equal(p, again)
    assert not model.network_.training


def test_a_subset_of_the_known_questions_in_another_order(world, known, asked):
    some = asked.select(questions=["q9", "q2", "q30"])
    model = TextOpinionModel(width=16, steps=150, dropout=0.0).fit(some, known, world[1][[9, 2, 30]])
    p = model.predict_proba(known.vectors_, world[1][[9, 2, 30]], [4] * 3, known=True)
    assert np.abs(p - known.predict_proba(known.vectors_, ["q9", "q2", "q30"])).mean() < 0.05


# views -----------------------------------------------------------------------------------------------------------
def test_each_view_has_its_own_scale(world, asked, known):
    first = world[1][:50]
    views = np.stack([first, 1000 * first - 5])  # the same, said by an encoder with other units
    model = TextOpinionModel(width=32, steps=300).fit(asked, known, views)
    p = [model.predict_proba(known.vectors_, h, [4] * 50, view, known=True) for view, h in enumerate(views)]
    np.testing.assert_allclose(p[0], p[1], atol=1e-3)
    assert np.abs(p[0] - known.predict_proba(known.vectors_)).mean() < 0.1


def test_a_copy_without_dropout_says_the_same(world, known, model):
    trunk = model.network_
    other = trunk.without_dropout()
    z, h = torch.as_tensor(known.vectors_), torch.as_tensor(world[1][:50])
    assert torch.equal(other.train()(z, h), trunk(z, h))
    assert trunk.dropout.p == 0.3  # the original is as it was


def test_new_questions_are_answered_no_surer_than_they_should_be(world, asked, known, model):
    """Fifty questions whose texts say nothing: what is believed of new ones is little, and known ones stay."""
    noise = np.random.default_rng(0).standard_normal((60, 24)).astype(np.float32)
    lost = TextOpinionModel(width=32, steps=300).fit(asked, known, noise[:50])
    said = _said(world[0], range(50, 60))
    blind, told = (m.predict_proba(known.vectors_, h[50:], [4] * 10) for m, h in ((lost, noise), (model, world[1])))
    assert blind.max(-1).mean() < 0.35 < told.max(-1).mean()
    assert _nll(blind, said) < np.log(4) + 0.02  # even answers are worth log 4; 1.49 where all texts were believed
    sure = lost.predict_proba(known.vectors_, noise[:50], [4] * 50, known=True)
    assert sure.max(-1).mean() > blind.max(-1).mean() + 0.1


def test_one_question_and_dead_coordinates_stay_finite():
    network = PersonContext(2, 3, width=4)
    network.standardise(np.zeros((5, 2)), [np.array([[1.0, 2.0, 3.0]])])
    assert torch.isfinite(network(torch.randn(5, 2), torch.randn(2, 3))).all()
    network.standardise(np.ones((5, 2)), [np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 3.0]])])
    assert torch.isfinite(network(torch.randn(5, 2), 1e6 * torch.randn(2, 3))).all()


def test_people_of_their_own_a_context():
    network = PersonContext(3, 4, width=8).eval()
    z, h = torch.randn(2, 5, 3), torch.randn(2, 4)
    each = network(z, h)  # (C, N, 2 * width)
    assert each.shape == (2, 5, 16)
    for c in range(2):
        torch.testing.assert_close(each[c], network(z[c], h[c : c + 1])[0])


# errors ----------------------------------------------------------------------------------------------------------
def test_wrong_number_of_embeddings(world, asked, known):
    with pytest.raises(ValueError, match="49 embeddings for 50 questions"):
        TextOpinionModel().fit(asked, known, world[1][:49])


def test_a_question_that_the_opinion_model_does_not_know(world, known):
    with pytest.raises(SurveyError, match="there is no question"):
        TextOpinionModel(steps=1).fit(world[0].select(questions=["q55"]), known, world[1][55:56])


def test_is_an_estimator():
    model = TextOpinionModel(width=7, dropout=0.1, steps=3, random_state=5)
    assert clone(model).get_params() == {"width": 7, "dropout": 0.1, "steps": 3, "random_state": 5}
