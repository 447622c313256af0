import numpy as np
import pytest

from personae.data.account import SurveyError
from personae.people.paper_factorization import PaperFactorization


@pytest.fixture(scope="module")
def parts(make, halve):
    train, test = halve(make(n=400, q=30, d=2, noise=0.3))
    return PaperFactorization(n_components=2, learning_rate=0.02, batch_size=512).fit(train), train, test


def test_learns(parts):
    paper, train, test = parts
    assert paper.vectors_.shape == (400, 2)
    hit = paper.predict(paper.vectors_)[test.respondent, test.question] == test.option
    counts = train.option_counts()
    majority = counts.argmax(1)[test.question] == test.option
    assert hit.mean() > majority.mean() + 0.05


def test_probabilities(parts):
    paper, _, test = parts
    p = paper.predict_proba(paper.vectors_)
    assert np.allclose(p.sum(2), 1, atol=1e-5)
    pairs = paper.predict_proba_pairs(test.respondent, test.question)
    assert np.allclose(pairs, p[test.respondent, test.question], atol=1e-5)
    assert -np.log(pairs[np.arange(len(pairs)), test.option]).mean() < np.log(4) - 0.1


def test_the_nearest_option(parts):
    paper, _, _ = parts
    value = paper.vectors_ @ paper.question_factors_.T * 3
    said = paper.predict(paper.vectors_)
    assert np.abs(np.clip(value, 0, 3) - said).max() <= 0.5 + 1e-5


def test_fold_in(parts):
    paper, train, _ = parts
    me = paper.fold_in(train.answers_of("r3"))
    assert me.vector.shape == (2,)
    assert paper.predict(me).shape == (1, 30)
    nobody = paper.fold_in({})
    assert np.allclose(nobody.vector, paper.vectors_.mean(0), atol=1e-6)
    both = paper.fold_in(train.select(["r3", "r4"]))
    assert np.allclose(both[0].vector, me.vector, atol=1e-4)
    assert np.allclose(paper.transform(train.select(["r3"]))[0], me.vector, atol=1e-4)
    assert nobody.uncertainty > me.uncertainty
    assert paper["r3"].origin["respondent"] == "r3"


def test_same_seed_same_bits(parts):
    paper, train, _ = parts
    again = PaperFactorization(n_components=2, learning_rate=0.02, batch_size=512).fit(train)
    assert np.array_equal(paper.vectors_, again.vectors_)


def test_no_answers(parts):
    _, train, _ = parts
    with pytest.raises(SurveyError, match="no answers"):
        PaperFactorization().fit(train.keep_answers(np.zeros(train.n_answers, bool)))
