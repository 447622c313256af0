from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey

TEA = Question("tea", "Tea?", ("no", "a bit", "yes"))
BUS = Question("bus", "Bus?", ("never", "often"))


@pytest.fixture
def survey():
    traits = pd.DataFrame({"sex": ["f", None, "m"]})
    return Survey([TEA, BUS], ["ann", "bob", "eve"], [2, 0, 0, 1], [0, 1, 0, 1], [1, 0, 2, 1], traits)


def test_answers_are_sorted_and_typed(survey):
    assert survey.respondent.tolist() == [0, 0, 1, 2]
    assert survey.question.tolist() == [0, 1, 1, 0]
    assert survey.option.tolist() == [2, 0, 1, 1]
    assert [a.dtype for a in (survey.respondent, survey.question, survey.option)] == [np.int32, np.int32, np.int16]
    assert survey.option_counts().tolist() == [[0, 1, 1], [1, 1, 0]]


def test_parts_keep_labels_traits_and_order(survey):
    part = survey.select(respondents=["eve", "ann"], questions=["tea"])
    assert part.answers_of("eve") == {"tea": "a bit"}
    assert part.traits["sex"].tolist() == ["m", "f"]
    assert survey.keep_answers(survey.question == 1).answers_of("ann") == {"bus": "never"}
    frame = survey.to_frame()
    assert frame.loc["ann"].tolist() == ["yes", "never"]
    assert frame.isna().to_numpy().tolist() == [[False, False], [True, False], [False, True]]


def test_the_fingerprint_is_of_the_content(survey):
    same = Survey([TEA, BUS], ["ann", "bob", "eve"], [0, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1], survey.traits)
    assert same.fingerprint == survey.fingerprint
    others = [
        Survey([TEA, BUS], ["ann", "bob", "eve"], [0, 0, 1, 2], [0, 1, 1, 0], [1, 0, 1, 1], survey.traits),
        Survey([TEA, BUS], ["ann", "bob", "joe"], [0, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1], survey.traits),
        Survey([TEA, BUS], ["ann", "bob", "eve"], [0, 0, 1, 2], [0, 1, 1, 0], [2, 0, 1, 1]),
    ]
    assert len({survey.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_unknown_names_raise_with_the_nearest(survey):
    with pytest.raises(SurveyError, match='there is no question "te"; nearest: tea'):
        survey.question_index("te")
    with pytest.raises(SurveyError, match='there is no respondent "anna"; nearest: ann'):
        survey.answers_of("anna")
    with pytest.raises(SurveyError, match=r'"maybe" is not an option of question "tea"; it has: no \| a bit \| yes'):
        TEA.option_index("maybe")


@pytest.mark.parametrize(
    ("questions", "people", "answers", "expected"),
    [
        ([TEA, TEA], ["ann"], ([0], [0], [0]), 'question "tea" occurs more than once'),
        ([TEA], ["ann", "ann"], ([0], [0], [0]), 'respondent "ann" occurs more than once'),
        ([TEA], ["ann", " "], ([0], [0], [0]), "respondent number 2 has an empty id"),
        ([Question("q", "?", ("a",))], ["ann"], ([0], [0], [0]), r'question "q" has 1 option\(s\)'),
        ([Question("q", "?", ("a", "a"))], ["ann"], ([0], [0], [0]), 'question "q" lists the option "a" twice'),
        ([Question("q", "?", ("a", ""))], ["ann"], ([0], [0], [0]), 'question "q" has an empty option'),
        ([TEA], ["ann"], ([0, 0], [0, 0], [0, 1]), 'respondent "ann" answers question "tea" more than once'),
        ([TEA], ["ann"], ([1], [0], [0]), "an answer names respondent number 1"),
        ([TEA], ["ann"], ([0], [1], [0]), "an answer names question number 1"),
        ([TEA], ["ann"], ([0], [0], [3]), "gives option 3 of a question with 3 options"),
        ([TEA], ["ann"], ([0], [0], [-1]), "gives option -1"),
        ([TEA], ["ann"], ([0], [0, 0], [0]), "differ in length"),
    ],
)
def test_what_a_survey_refuses(questions, people, answers, expected):
    with pytest.raises(SurveyError, match=expected):
        Survey(questions, people, *answers)
