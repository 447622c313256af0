import numpy as np
import pytest

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.people.answers import Scale, collect


def test_common_questions_are_standardised(survey):
    z = Scale.of(survey).values(survey)
    for j in (0, 11):
        assert abs(z[survey.question == j].mean()) < 0.05
        assert abs(z[survey.question == j].std() - 1) < 0.05


def test_a_question_answered_once_leans_on_the_others():
    questions = [Question("common", "?", ("a", "b", "c")), Question("rare", "?", ("a", "b", "c"))]
    survey = Survey(questions, [str(i) for i in range(100)], [*range(100), 0], [0] * 100 + [1], [0, 1] * 50 + [2])
    scale = Scale.of(survey)
    assert scale.mean[1] < 0.35
    assert 0 < scale(np.array([1]), np.array([2]))[0] < 5


def test_restore_is_the_inverse(survey):
    scale = Scale.of(survey)
    question, option = np.arange(survey.n_questions), np.arange(survey.n_questions) % 4
    assert np.allclose(scale.restore(question, scale(question, option)), option)


def test_scores_are_the_options_values(survey):
    scale = Scale.of(survey)
    assert np.isclose(scale.scores()[3, 2], scale(np.array([3]), np.array([2]))[0])


def test_a_survey_with_reordered_options_and_questions_is_matched_by_label(survey):
    q = survey.questions
    theirs = [Question("q5", "?", tuple(reversed(q[5].options))), Question("q2", "?", q[2].options[:3])]
    new = Survey(theirs, ["x", "y"], [0, 1], [0, 1], [0, 2])
    names, person, column, option = collect(new, q, survey.question_ids)
    assert names == ["x", "y"]
    assert list(zip(person, column, option, strict=True)) == [(0, 5, 3), (1, 2, 2)]


def test_unknown_question_and_option(survey):
    with pytest.raises(SurveyError, match='no question "q1x"; nearest: q1'):
        collect({"q1x": "level 0"}, survey.questions, survey.question_ids)
    with pytest.raises(SurveyError, match='"maybe" is not an option of question "q1"; it has: level 0'):
        collect({"q1": "maybe"}, survey.questions, survey.question_ids)
