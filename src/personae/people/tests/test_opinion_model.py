import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.people.answers import Scale
from personae.people.opinion_model import OpinionModel


def likelihood(p, test):
    return -np.log(p[np.arange(len(p)), test.option]).mean()


def marginal(train, test):
    share = train.option_counts() + 1.0
    return (share / share.sum(1, keepdims=True))[test.question]


def test_better_than_the_majority_for_seen_and_unseen_people(make, halve):
    survey = make(n=500)
    old, new = survey.select(survey.respondent_ids[:400]), survey.select(survey.respondent_ids[400:])
    train, test = halve(old)
    people = OpinionModel(n_components=3).fit(train)
    base = likelihood(marginal(train, test), test)
    assert likelihood(people.predict_proba_pairs(test.respondent, test.question), test) < base - 0.15
    given, hidden = halve(new)
    p = people.predict_proba_pairs(hidden.respondent, hidden.question, people.fold_in(given))
    assert likelihood(p, hidden) < base - 0.15
    bare = people.predict_proba_pairs(hidden.respondent, hidden.question, people.transform(given))
    assert likelihood(bare, hidden) < base - 0.15


def test_two_answers_are_no_worse_than_the_marginals(make, halve):
    survey = make(n=500)
    old, new = survey.select(survey.respondent_ids[:350]), survey.select(survey.respondent_ids[350:])
    people = OpinionModel(n_components=3).fit(old)
    rank = np.arange(new.n_answers) - np.searchsorted(new.respondent, new.respondent)
    hidden = new.keep_answers(rank >= 2)
    base = likelihood(marginal(old, hidden), hidden)
    for n in (0, 1, 2):
        p = people.predict_proba_pairs(hidden.respondent, hidden.question, people.fold_in(new.keep_answers(rank < n)))
        assert likelihood(p, hidden) < base + 0.01


def two_camps(n, q, flips, seed, options=("no", "yes")):
    """Two camps that disagree about everything but for a share of flipped answers; some options nobody chooses."""
    rng = np.random.default_rng(seed)
    said = np.outer(rng.choice([-1, 1], n), rng.choice([-1, 1], q)) * np.where(rng.random((n, q)) < flips, -1, 1)
    person, question = np.indices((n, q)).reshape(2, -1)
    questions = [Question(f"q{j}", "?", options) for j in range(q)]
    chosen = (said.ravel() > 0) + (len(options) - 2) // 2
    return Survey(questions, [f"r{i}" for i in range(n)], person, question, chosen)


def gains(surveys, halve):
    """Held-out likelihood gained on the marginal, and accuracy, mean over surveys."""
    rows = []
    for survey in surveys:
        train, test = halve(survey)
        people = OpinionModel().fit(train)
        p = people.predict_proba_pairs(test.respondent, test.question)
        gain = likelihood(marginal(train, test), test) - likelihood(p, test)
        rows.append((gain, (p.argmax(1) == test.option).mean()))
    return np.mean(rows, axis=0)


def test_a_small_survey_of_noise_gets_its_marginals(halve):
    gain, _ = gains([two_camps(60, 6, 0.5, seed) for seed in range(4)], halve)
    assert gain > -0.02


def test_a_small_survey_with_structure_is_predicted_without_overconfidence(halve):
    gain, accuracy = gains([two_camps(60, 6, 0.05, seed) for seed in range(4)], halve)
    assert gain > 0.25
    assert accuracy > 0.88


def test_options_that_nobody_chose_are_not_predicted(halve):
    gain, accuracy = gains([two_camps(60, 6, 0, seed, tuple("abcd")) for seed in range(2)], halve)
    assert gain > 0.5
    assert accuracy == 1


def test_dimension_is_chosen_by_validation(make):
    people = OpinionModel().fit(make(n=400, q=60, d=2, noise=0.3))
    assert people.n_components_ == 4
    assert [v["n_components"] for v in people.validation_ if "n_components" in v] == [4, 8]


def test_probabilities(people):
    p = people.predict_proba(people.vectors_[:7])
    assert p.shape == (7, 40, 4)
    assert np.allclose(p.sum(2), 1, atol=1e-5)
    assert people.predict_proba(people.vectors_[0], "q3").shape == (1, 1, 4)
    some = people.predict_proba(people.vectors_[:7], ["q3", "q1"])
    assert np.allclose(some, p[:, [3, 1]], atol=1e-6)
    pairs = people.predict_proba_pairs(np.array([2, 6]), np.array([5, 0]))
    assert np.allclose(pairs, p[[2, 6], [5, 0]], atol=1e-6)


def test_nothing_beyond_a_questions_options():
    questions = [Question("two", "?", ("a", "b")), Question("four", "?", ("a", "b", "c", "d"))]
    rng = np.random.default_rng(0)
    person, question = np.indices((60, 2)).reshape(2, -1)
    survey = Survey(questions, [str(i) for i in range(60)], person, question, rng.integers(0, 2 + 2 * question))
    p = OpinionModel(n_components=1).fit(survey).predict_proba(np.zeros((3, 2)))
    assert (p[:, 0, 2:] == 0).all()
    assert np.allclose(p.sum(2), 1, atol=1e-5)


def test_expected_value_is_within_the_options(people, survey):
    value = people.predict_value(people.vectors_)
    assert value.shape == (300, 40)
    assert value.min() >= 0
    assert value.max() <= 3
    pairs = people.predict_value_pairs(survey.respondent, survey.question)
    assert np.allclose(pairs, value[survey.respondent, survey.question], atol=1e-5)
    assert np.corrcoef(pairs, survey.option)[0, 1] > 0.6


def test_fold_in_of_a_respondents_own_answers(people, survey):
    me = people.fold_in(survey.answers_of("r7"))
    assert np.allclose(me.vector, people.vectors_[7], atol=1e-5)
    assert np.allclose(me.covariance, people["r7"].covariance, atol=1e-6)
    assert me.origin == {"kind": "fold-in", "answers": len(survey.answers_of("r7"))}


def test_alone_as_in_a_batch(people, survey):
    answers = [survey.answers_of(f"r{i}") for i in range(5)]
    batch = people.fold_in(answers)
    assert [p.name for p in batch] == [f"new person {i}" for i in range(5)]
    for one, p in zip(answers, batch, strict=True):
        assert np.allclose(people.fold_in(one).vector, p.vector, atol=1e-5)
    folded = people.fold_in(survey.select(["r3", "r1"]))
    assert [p.name for p in folded] == ["r3", "r1"]
    assert np.allclose(folded[0].vector, people.vectors_[3], atol=1e-5)


def test_no_answers_give_the_prior(people):
    nobody = people.fold_in({})
    assert np.allclose(nobody.vector, 0, atol=1e-6)
    assert np.allclose(nobody.covariance, people.prior_covariance_, atol=1e-6)
    assert nobody.uncertainty == pytest.approx(1, abs=1e-4)
    assert people.fold_in([]) == []


def test_two_answers_are_more_uncertain_than_twenty(people):
    answers = {f"q{j}": "level 3" for j in range(20)}
    two = people.fold_in(dict(list(answers.items())[:2]))
    assert 1 > two.uncertainty > 1.5 * people.fold_in(answers).uncertainty


def test_unknown_names(people):
    with pytest.raises(SurveyError, match='no question "q4o"'):
        people.fold_in({"q4o": "level 1"})
    with pytest.raises(SurveyError, match="is not an option"):
        people.fold_in({"q4": "level 9"})
    with pytest.raises(SurveyError, match='no respondent "r9999"'):
        people["r9999"]
    with pytest.raises(SurveyError, match='no question "zz"'):
        people.predict_proba(people.vectors_[:1], ["zz"])
    with pytest.raises(ValueError, match="have 4 numbers, not 3"):
        people.predict_proba(np.zeros(3))


def test_respondents_groups_and_traits(people):
    one = people["r3"]
    assert np.allclose(one.vector, people.vectors_[3])
    assert one.origin == {"kind": "respondent", "respondent": "r3"}
    left = people.trait_persona("side", "left")
    rows = np.flatnonzero(people.traits_["side"] == "left")
    x = people.vectors_[rows].astype(float)
    assert np.allclose(left.vector, x.mean(0), atol=1e-6)
    spread = np.cov(x.T, bias=True) + people.covariance(rows).mean(0)
    assert np.allclose(left.covariance, spread, atol=1e-5)
    assert left.origin == {"kind": "trait group", "trait": "side", "value": "left", "people": len(rows)}
    group = people.persona(["r1", "r2"], name="pair")
    assert np.allclose(group.vector, people.vectors_[[1, 2]].mean(0), atol=1e-6)


def test_a_group_answers_like_a_random_member(people, survey):
    left = people.trait_persona("side", "left")
    rows = np.flatnonzero(people.traits_["side"] == "left")
    members = people.predict_proba(people.vectors_[rows]).mean(0)
    group = people.predict_proba(left)[0]
    centroid = people.predict_proba(left.vector)[0]
    assert np.abs(group - members).mean() < 0.6 * np.abs(centroid - members).mean()
    assert np.abs(group - members).mean() < 0.02


def test_trait_groups_that_are_refused(people):
    with pytest.raises(SurveyError, match='no trait "sid"; nearest: side'):
        people.trait_persona("sid", "left")
    with pytest.raises(SurveyError, match='"lefty"; nearest: left'):
        people.trait_persona("side", "lefty")
    with pytest.raises(SurveyError, match="at least 1000"):
        people.trait_persona("side", "left", minimum=1000)
    with pytest.raises(SurveyError, match="no members"):
        people.persona([])


def test_only_training_answers_count(survey, halve):
    """Whatever the held-out answers say, the fit is the same."""
    train, _ = halve(survey)
    scale = Scale.of(train)
    common = np.bincount(train.question, train.option / 3, 40) + 10 * (train.option / 3).mean()
    assert np.allclose(scale.mean, common / (np.bincount(train.question, minlength=40) + 10))
    assert np.allclose(OpinionModel(n_components=3).fit(train)._scale.mean, scale.mean)


def test_same_seed_same_bits(survey):
    a, b = (OpinionModel(n_components=3).fit(survey) for _ in range(2))
    assert np.array_equal(a.vectors_, b.vectors_)
    assert np.array_equal(a.predict_proba(a.vectors_), b.predict_proba(b.vectors_))


def test_a_second_fit_forgets_the_first(survey, make):
    people = OpinionModel(n_components=3).fit(make(seed=5))
    people["r0"]
    people.fit(survey)
    assert np.allclose(people.fold_in(survey.answers_of("r7")).covariance, people["r7"].covariance, atol=1e-6)


def test_order_of_people_and_questions_does_not_matter(survey):
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(300), rng.permutation(40)
    other = survey.select(survey.respondent_ids[rows], survey.question_ids[columns])
    a, b = (OpinionModel(n_components=3).fit(s) for s in (survey, other))
    b.strength_ = a.strength_
    assert np.allclose(a.vectors_[rows], b.vectors_, atol=0.02)


def test_a_rare_question_does_not_overfit(make):
    survey = make(n=400)
    rare = (survey.question == 0) & (np.cumsum(survey.question == 0) > 2)
    people = OpinionModel(n_components=3).fit(survey.keep_answers(~rare))
    p = people.predict_proba(people.vectors_, "q0")[:, 0]
    assert p.max() < 0.75
    assert likelihood(p[survey.respondent[rare]], survey.keep_answers(rare)) < np.log(4) + 0.1


def test_a_question_nobody_answered_is_uniform_on_average(make):
    survey = make(n=100)
    people = OpinionModel(n_components=2).fit(survey.keep_answers(survey.question != 0))
    p = people.predict_proba(people.vectors_, "q0")[:, 0]
    assert np.allclose(p.mean(0), 0.25, atol=0.03)
    assert p.max() < 0.6  # only how high somebody answers in general is known


@pytest.mark.parametrize(("n", "q"), [(1, 3), (3, 1), (2, 2)])
def test_tiny_surveys(n, q):
    person, question = np.indices((n, q)).reshape(2, -1)
    questions = [Question(f"q{j}", "?", ("a", "b")) for j in range(q)]
    survey = Survey(questions, [f"r{i}" for i in range(n)], person, question, (person + question) % 2)
    people = OpinionModel().fit(survey)
    assert np.isfinite(people.predict_proba(people.vectors_)).all()
    assert np.isfinite(people["r0"].covariance).all()


def test_what_fit_refuses(survey):
    with pytest.raises(SurveyError, match="no answers"):
        OpinionModel().fit(survey.keep_answers(np.zeros(survey.n_answers, bool)))
    for d in (0, 41, "many", 2.5):
        with pytest.raises(ValueError, match="n_components is"):
            OpinionModel(n_components=d).fit(survey)


def test_estimator_manners():
    model = OpinionModel(n_components=5)
    assert clone(model).get_params() == {"n_components": 5, "random_state": 0}
    with pytest.raises(Exception, match="not fitted"):
        model.fold_in({})


def test_save_and_load(people, survey, tmp_path):
    people.save(tmp_path / "model")
    loaded = OpinionModel.load(tmp_path / "model")
    assert np.array_equal(loaded.vectors_, people.vectors_)
    assert loaded.questions_ == people.questions_
    assert loaded.respondent_ids_.equals(people.respondent_ids_)
    pd.testing.assert_frame_equal(loaded.traits_, people.traits_)
    assert loaded.survey_ is None
    assert loaded.fingerprint_ == survey.fingerprint
    assert loaded.get_params() == people.get_params()
    assert loaded.confidence_ == people.confidence_
    assert np.array_equal(loaded.predict_proba(people.vectors_), people.predict_proba(people.vectors_))
    answers = {"q0": "level 2", "q9": "level 0"}
    assert loaded.fold_in(answers) == people.fold_in(answers)
    assert np.allclose(loaded["r5"].covariance, people["r5"].covariance, atol=1e-6)
    assert np.allclose(loaded.covariance(), people.covariance(), atol=1e-6)
    left = loaded.trait_persona("side", "left")
    assert np.allclose(left.covariance, people.trait_persona("side", "left").covariance, atol=1e-5)
    loaded.save(tmp_path / "again")
    assert np.array_equal(OpinionModel.load(tmp_path / "again").vectors_, people.vectors_)


def test_only_variances_of_a_very_large_survey_are_saved(people, tmp_path, monkeypatch):
    monkeypatch.setattr("personae.people.als._MOST_COVARIANCES", 10)
    people.save(tmp_path)
    loaded = OpinionModel.load(tmp_path)
    diagonal = people.covariance().diagonal(axis1=1, axis2=2)
    assert np.allclose(loaded.covariance().diagonal(axis1=1, axis2=2), diagonal, atol=1e-6)
    assert (loaded["r0"].covariance[0, 1:] == 0).all()


def test_load_refuses_what_does_not_fit(people, survey, tmp_path):
    with pytest.raises(ValueError, match="is missing"):
        OpinionModel.load(tmp_path)
    people.save(tmp_path / "a")
    OpinionModel(n_components=2).fit(survey).save(tmp_path / "b")
    (tmp_path / "a" / "opinion_model.safetensors").write_bytes(
        (tmp_path / "b" / "opinion_model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="do not belong together"):
        OpinionModel.load(tmp_path / "a")
    facts = tmp_path / "b" / "opinion_model.json"
    facts.write_text(facts.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format 99"):
        OpinionModel.load(tmp_path / "b")


def test_no_raw_answers_in_the_files(people, tmp_path):
    people.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"opinion_model.json", "opinion_model.safetensors", "respondents.parquet", "questions.parquet"}
    assert list(pd.read_parquet(tmp_path / "respondents.parquet")) == ["__respondent__", "side"]


@pytest.mark.shared
def test_general_social_survey(gss, halve):
    train, test = halve(gss)
    people = OpinionModel().fit(train)
    p = people.predict_proba_pairs(test.respondent, test.question)
    assert (p.argmax(1) == test.option).mean() > 0.633
    assert likelihood(p, test) < 0.829


def test_a_trait_may_have_any_name(survey, tmp_path):
    some = survey.select(survey.respondent_ids[:60])
    some.traits = pd.DataFrame({"__respondent__": ["a", "b"] * 30, "respondent": "x"}, index=some.respondent_ids)
    people = OpinionModel(n_components=2).fit(some)
    people.save(tmp_path)
    loaded = OpinionModel.load(tmp_path)
    assert list(loaded.respondent_ids_) == list(some.respondent_ids)
    assert loaded.traits_["__respondent__"].tolist() == ["a", "b"] * 30
    assert loaded.traits_["respondent"].tolist() == ["x"] * 60
