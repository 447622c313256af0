from __future__ import annotations

import pytest

from personae.data.read import read_survey
from personae.data.sample import load_sample

# Two wordings of these are joined in the sample; the other wording's column of the full GSS.
OTHER_WORDING = {name: name + "y" for name in ("natspac", "natheal", "natcity", "natdrug", "nateduc", "natrace")}
OTHER_WORDING |= {name: name + "y" for name in ("natarms", "nataid", "natfare")}
OTHER_WORDING |= {"natenvir": "natenviy", "natcrime": "natcrimy"}


@pytest.fixture(scope="module")
def sample():
    return load_sample()


def test_the_sample_is_complete(sample):
    assert sample.n_respondents == 2_347  # of 2,348: one answered none of the 18
    assert sample.n_questions == 18
    assert all(q.options == ("too little", "about right", "too much") for q in sample.questions)
    assert all(q.title and q.topic and q.text.endswith("?") for q in sample.questions)
    assert len({q.text for q in sample.questions}) == 18
    assert sample.traits.shape[1] == 10
    assert {note.reason: note.examples for note in sample.account.notes}["respondent without answers, left out"] == [
        "r2338"
    ]
    assert sample.account.source == "NORC, General Social Survey 2018"


def test_education_is_wanted_and_foreign_aid_is_not(sample):
    counts = dict(zip(sample.question_ids, sample.option_counts().tolist(), strict=True))
    assert counts["nateduc"] == [1789, 403, 134]
    assert counts["nataid"] == [332, 699, 1165]


def test_traits_are_labels(sample):
    assert sample.traits["sex"].value_counts().to_dict() == {"female": 1295, "male": 1052}
    assert set(sample.traits["age"].dropna()) == {"18-29", "30-44", "45-59", "60-74", "75+"}
    for name in sample.traits:
        assert not sample.traits[name].dropna().str.fullmatch(r"[\d.]+").any(), name  # no code is left


def test_opinions_follow_politics(sample):
    """A wrong sign or a shifted label would turn this around."""
    column = sample.question_index("natenvir")[0]
    mine = sample.question == column
    views = sample.traits["polviews"].to_numpy()[sample.respondent[mine]]
    too_little = sample.option[mine] == 0
    assert too_little[views == "extremely liberal"].mean() > too_little[views == "extremely conservative"].mean() + 0.2


@pytest.mark.shared
def test_every_answer_is_that_of_the_full_gss(sample, shared):
    full = read_survey(shared / "gss-2018")
    order = [int(name[1:]) - 1 for name in sample.respondent_ids]  # the same people in the same order
    theirs, ours = full.to_frame().iloc[order], sample.to_frame()
    for name in sample.question_ids:
        column = theirs[name]
        if name in OTHER_WORDING:
            column = column.where(column.notna(), theirs[OTHER_WORDING[name]])
        assert column.fillna("").tolist() == ours[name].fillna("").tolist(), name
    for name in ("age", "sex", "race", "degree", "partyid", "polviews"):
        assert full.traits[name].iloc[order].fillna("").tolist() == sample.traits[name].fillna("").tolist(), name
