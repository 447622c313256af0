from __future__ import annotations

import copy
import json

import pytest
from huggingface_hub import ModelCard

from personae.bundle import Bundle
from personae.data.sample import load_sample
from personae.data.survey import Question
from personae.export.card import bundle_card
from personae.people.opinion_model import OpinionModel


def line(row, accuracy):
    numbers = {"low": 0.5, "high": 0.7, "nll": 0.6543, "nll_low": 0.6, "nll_high": 0.7, "ece": 0.05, "n": 1234}
    return {"row": row, "accuracy": accuracy, **numbers, "seeds": 3}


@pytest.fixture
def evaluation(tmp_path, bundle):
    """Of the bundle's survey."""
    result = {
        "settings": {"survey": bundle.manifest["data"]["fingerprint"]},
        "identity": {"lm": {"name": "/home/ann/secret/lm"}},
        "tables": {"seen": [line("majority", 0.5), line("steered LM, person", 0.61237)], "new": []},
    }
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "result.json").write_text(json.dumps(result))
    return tmp_path / "evaluation"


def test_results_of_an_evaluation(bundle, evaluation):
    card = ModelCard(bundle_card(bundle, "ann/town", evaluation))
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {("responses.csv, seen", "accuracy"): 0.6124, ("responses.csv, seen", "nll"): 0.6543}
    assert card.data.model_name == "town"
    assert "| steered LM, person | 61.2% | 50.0% to 70.0% | 0.654 |" in card.text
    assert "judged on the rest, with the LM lm. It is the survey of this bundle." in card.text


def test_results_of_another_survey_are_not_those_of_the_model(bundle, evaluation):
    path = evaluation / "result.json"
    result = json.loads(path.read_text())
    result["settings"]["survey"] = "somewhere else"
    path.write_text(json.dumps(result))
    card = ModelCard(bundle_card(bundle, "ann/town", evaluation))
    assert card.data.eval_results is None
    assert "It is not the survey of this bundle" in card.text
    assert "61.2%" in card.text


def test_without_a_licence_none_is_claimed(bundle):
    card = ModelCard(bundle_card(bundle, "ann/town"))
    assert card.data.license == "unknown"
    assert "The publisher names no licence." in card.text
    assert "The publisher names no source to cite." in card.text
    assert "## Evaluation" not in card.text


def test_cohorts_are_named_with_their_sizes(bundle):
    text = bundle_card(bundle, "ann/town")
    for row in bundle.cohorts.summary_.itertuples():
        assert f"| {row.cohort} | {row.people} |" in text


def test_small_cohorts_are_not_counted(bundle):
    bundle.cohorts.summary_.loc[0, "people"] = 9
    assert "| cohort-0 | fewer than 10 |" in bundle_card(bundle, "ann/town")


def test_the_commands_of_a_card_are_those_that_work(bundle, people, tmp_path):
    used = bundle_card(bundle, "ann/town").split("## Use")[1]
    assert "personae ask hf:ann/town q0\npersonae chat hf:ann/town --as cohort-0\n" in used
    people = copy.copy(people)
    people.questions_ = (Question("so what?", "So what?", ("yes", "no")), *people.questions_[1:])
    silent = Bundle.write(tmp_path / "silent", people)
    used = bundle_card(silent, "ann/town").split("## Use")[1]
    assert "personae ask hf:ann/town 'so what?'\n" in used
    assert "personae chat" not in used


def test_the_sample_is_cited(tmp_path):
    survey = load_sample()
    bundle = Bundle.write(tmp_path / "gss", OpinionModel(n_components=2).fit(survey), account=survey.account)
    card = ModelCard(bundle_card(bundle, "ann/gss"))
    assert (card.data.license, card.data.license_name) == ("other", "public-use-with-citation")
    assert "General Social Survey 2018, NORC at the University of Chicago" in card.text
    assert card.data.base_model is None
    assert "Who 2,347 people are" in card.text
