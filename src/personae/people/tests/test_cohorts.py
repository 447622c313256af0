import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.people.cohorts import Cohorts, _elbow
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona


@pytest.fixture(scope="module")
def camps():
    """Three camps of 150, 100 and 50 people, each with its own profile of agreement."""
    rng = np.random.default_rng(0)
    camp = rng.permutation(np.repeat([0, 1, 2], [150, 100, 50]))
    chance = np.where(rng.random((3, 30)) < 0.5, 0.1, 0.9)[camp]
    said = (rng.random((300, 30)) < chance).astype(int)
    person, question = np.nonzero(rng.random(said.shape) < 0.8)
    questions = [Question(f"q{j}", f"Q{j}?", ("no", "yes"), "", "first" if j < 10 else "rest") for j in range(30)]
    traits = pd.DataFrame({"camp": np.array(["a", "b", "c"])[camp]})
    survey = Survey(questions, [f"r{i}" for i in range(300)], person, question, said[person, question], traits)
    return OpinionModel(n_components=4).fit(survey), camp


@pytest.fixture(scope="module")
def cohorts(camps):
    return Cohorts().fit(camps[0])


def test_finds_the_camps_largest_first(camps, cohorts):
    assert cohorts.k_ == len(cohorts) == 3
    assert (cohorts.labels_ == camps[1]).mean() > 0.97
    assert list(cohorts.summary_.people) == sorted(cohorts.summary_.people, reverse=True)
    assert [p.name for p in cohorts] == ["cohort-0", "cohort-1", "cohort-2"]


def test_curves(cohorts):
    curves = cohorts.curves_
    assert list(curves.columns) == ["k", "reconstruction", "stability", "smallest", "elbow", "score"]
    assert curves.k[curves.score.argmax()] == 3
    assert (np.diff(curves.reconstruction) < 1e-6).all()
    assert curves.stability[2] > 0.9


def test_centroids_and_spread(camps, cohorts):
    people, _ = camps
    rows = np.flatnonzero(cohorts.labels_ == 1)
    x = people.vectors_[rows].astype(float)
    assert np.allclose(cohorts[1].vector, x.mean(0), atol=1e-6)
    assert np.allclose(cohorts[1].covariance, np.cov(x.T, bias=True) + people.covariance(rows).mean(0), atol=1e-5)
    origin = {"kind": "cohort", "of": 3, "questions": None, "cohort": 1, "people": len(rows)}
    assert cohorts[1].origin == origin
    assert cohorts[1].label
    assert cohorts[-1] == cohorts[2]
    with pytest.raises(IndexError, match="there is no cohort 3"):
        cohorts[3]


def test_distance_is_that_of_predicted_answers(camps, cohorts):
    people, _ = camps
    f, x = people.question_factors_, people.vectors_
    centroids = np.stack([c.vector for c in cohorts])
    miss = (x - centroids[cohorts.labels_]) @ f.T
    assert np.allclose(cohorts.distances_, np.sqrt((miss**2).mean(1)), atol=1e-4)
    row = cohorts.curves_.set_index("k").loc[3]
    assert row.reconstruction == pytest.approx((miss**2).mean(), rel=1e-3)


def test_the_profiles_know_the_camps(cohorts):
    camp = cohorts.profiles_.traits.set_index(["value", "cohort"])
    assert camp.share[("a", 0)] > 0.9
    assert camp.suppressed[("c", 0)]


def test_same_seed_same_cohorts(camps, cohorts):
    again = Cohorts().fit(camps[0])
    assert np.array_equal(again.labels_, cohorts.labels_)
    assert list(again) == list(cohorts)
    pd.testing.assert_frame_equal(again.curves_, cohorts.curves_)


def test_assign(camps, cohorts):
    people, _ = camps
    assert np.array_equal(cohorts.assign(people.vectors_), cohorts.labels_)
    assert list(cohorts.assign(list(cohorts))) == [0, 1, 2]
    assert cohorts.assign(people["r5"])[0] == cohorts.labels_[5]


def test_specific_inquiries(camps):
    people, _ = camps
    topic = Cohorts(k=2, topic="first").fit(people)
    ids = [f"q{j}" for j in range(10)]
    named = Cohorts(k=2, questions=ids).fit(people)
    assert np.array_equal(topic.labels_, named.labels_)
    assert topic[0].origin["questions"] == ids
    miss = (people.vectors_ - np.stack([c.vector for c in topic])[topic.labels_]) @ people.question_factors_[:10].T
    assert np.allclose(topic.distances_, np.sqrt((miss**2).mean(1)), atol=1e-4)
    assert topic.curves_ is None


def test_what_fit_refuses(camps):
    people, _ = camps
    with pytest.raises(SurveyError, match='topic "last"; there are: first, rest'):
        Cohorts(topic="last").fit(people)
    with pytest.raises(SurveyError, match='no question "q99"'):
        Cohorts(questions=["q99"]).fit(people)
    with pytest.raises(ValueError, match="not both"):
        Cohorts(questions=["q1"], topic="first").fit(people)
    for k in (0, 301, "six"):
        with pytest.raises(ValueError, match="k is"):
            Cohorts(k=k).fit(people)
    with pytest.raises(SurveyError, match="other respondents"):
        Cohorts().fit(people, people.survey_.select(people.respondent_ids_[:10]))


def test_people_who_all_say_the_same():
    person, question = np.indices((20, 3)).reshape(2, -1)
    questions = [Question(f"q{j}", "?", ("a", "b")) for j in range(3)]
    survey = Survey(questions, [f"r{i}" for i in range(20)], person, question, np.zeros(60, int))
    people = OpinionModel().fit(survey)
    assert people.predict_proba(people["r0"])[0, :, 0].min() > 0.8
    assert len(Cohorts().fit(people)) == 1
    with pytest.raises(ValueError, match="1 can be told apart"):
        Cohorts(k=2).fit(people)


def test_a_loaded_model_needs_the_survey(camps, cohorts, tmp_path):
    people, _ = camps
    people.save(tmp_path)
    loaded = OpinionModel.load(tmp_path)
    with pytest.raises(SurveyError, match="give the survey"):
        Cohorts().fit(loaded)
    assert np.array_equal(Cohorts(k=3).fit(loaded, people.survey_).labels_, cohorts.labels_)


def test_no_cohort_below_the_minimum_is_proposed(camps):
    curves = Cohorts(minimum=60).fit(camps[0]).curves_
    assert (curves.score[(curves.smallest < 60) & (curves.k > 1)] < 0).all()


def test_elbow():
    assert _elbow(np.array([10.0, 4, 1, 0.8, 0.6, 0.4])).argmax() == 2
    assert (_elbow(np.array([1.0, 1, 1])) == 0).all()
    assert (_elbow(np.array([1.0])) == 0).all()


def test_save_and_load(cohorts, camps, tmp_path):
    cohorts.save(tmp_path)
    loaded = Cohorts.load(tmp_path)
    assert list(loaded) == list(cohorts)
    assert np.array_equal(loaded.labels_, cohorts.labels_)
    assert np.array_equal(loaded.assign(camps[0].vectors_), cohorts.labels_)
    pd.testing.assert_frame_equal(loaded.summary_, cohorts.summary_)
    pd.testing.assert_frame_equal(loaded.curves_, cohorts.curves_)
    assert loaded.get_params() == cohorts.get_params()
    (tmp_path / "cohorts.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors is missing"):
        Cohorts.load(tmp_path)


def test_estimator_manners():
    assert clone(Cohorts(k=4, topic="x")).get_params()["topic"] == "x"
    with pytest.raises(Exception, match="not fitted"):
        len(Cohorts())


def test_cohorts_blend(cohorts):
    assert Persona.blend({cohorts[0]: 1, cohorts[1]: 1}).origin["parts"][0]["name"] == "cohort-0"


@pytest.mark.shared
def test_general_social_survey(gss):
    people = OpinionModel().fit(gss)
    cohorts = Cohorts().fit(people)
    assert 2 <= cohorts.k_ <= 6
    left = people.fold_in({"natarms": "too much", "natenvir": "too little"})
    assert left.uncertainty > people[people.respondent_ids_[0]].uncertainty
