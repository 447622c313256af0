from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from personae import OpinionModel, load_sample
from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.people.cohorts import Cohorts
from personae.report.page import report, write_report
from personae.report.tables import evaluation_tables, read_evaluation

EVIL = "<script>alert(1)</script>"  # in a question's text
_FIGURE = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


def without_plotly(html: str) -> str:
    """The page less the one library that stands in it."""
    from plotly.offline import get_plotlyjs

    assert html.count(get_plotlyjs()) == 1
    return html.replace(get_plotlyjs(), "")


@pytest.fixture(scope="module")
def page(bundle) -> str:
    return without_plotly(report(bundle))


@pytest.fixture
def evaluation(tmp_path, bundle):
    """A folder with a small result.json."""
    scores = {"low": 0.5, "high": 0.7, "nll_low": 0.5, "nll_high": 0.9, "ece": 0.01, "n": 1200, "seeds": 1}
    rows = [
        {"row": "majority", "accuracy": 0.6, "nll": 0.8, **scores},
        {"row": "<i>m", "accuracy": 0.65, "nll": 0.7, **scores},
    ]
    plus = {"estimate": 0.05, "low": 0.01, "high": 0.09}
    found = {
        "identity": {"lm": {"name": "tiny"}},
        "settings": {"survey": bundle.manifest["data"]["fingerprint"]},
        "tables": {"seen": rows, "unseen-5": rows[:1], "new": []},
        "differences": {"seen": [{"row": "<i>m", "minus": "majority", "accuracy": plus, "nll": plus, "n": 1200}]},
        "coherence": [
            {
                "groups_by": "2 cohorts",
                "topic": "",
                "groups": 2.0,
                "explained": 0.25,
                "accuracy": 0.7,
                "majority": 0.6,
                "answers": 100.0,
            }
        ],
    }
    (tmp_path / "result.json").write_text(json.dumps(found))
    return tmp_path


# one file --------------------------------------------------------------------------------------------------------
def test_nothing_is_fetched(page):
    assert 'src="' not in page
    assert "<link" not in page
    assert "@import" not in page
    assert not re.findall(r"https?://", page)
    assert "default-src 'none'" in page


def test_words_of_users_stay_words(page):
    scripts = re.findall(r"<script[^>]*>", page)
    figures = _FIGURE.findall(page)
    assert scripts.count('<script type="application/json">') == len(figures)
    assert len(scripts) == len(figures) + 2  # the library, and the page's own
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>yes</b>" not in page
    for figure in figures:
        assert "<" not in figure
        text = json.dumps(json.loads(figure))
        assert "<b>yes" not in text
        assert "&lt;b&gt;yes" in text or "<b>" not in text


def test_the_numbers_at_the_top(page, survey, cohorts):
    found = dict(zip(*(re.findall(rf"<{tag}>(.*?)</{tag}>", page) for tag in ("dt", "dd")), strict=True))
    assert found == {
        "people": "120",
        "questions": "8",
        "answers": f"{survey.n_answers:,}",
        "cohorts": str(len(cohorts)),
        "traits": "2",
        "dimensions": "2",
    }


def test_what_was_skipped_and_where_it_comes_from(page, bundle):
    assert re.search(r'<td class="number">3</td><td class="">cell &lt;/script', page)
    assert "responses.csv (wide)" in page
    assert "/home/ann" not in page
    assert bundle.manifest["data"]["fingerprint"] in page
    for facts in bundle.manifest["files"].values():
        assert facts["sha256"] in page


def test_no_respondent_and_no_small_group_is_named(page):
    assert "person-" not in page
    assert "hermit" not in page
    assert '"(other)"' in page


def test_a_card_says_what_the_profile_says(page, cohorts):
    card = page.split("<h3>cohort-0</h3>")[1].split("<h3>")[0]
    answers = cohorts.protected().profiles_.answers
    answers = answers[(answers.cohort == 0) & ~answers.suppressed]
    telling = cohorts.profiles_.telling.query("cohort == 0 and not suppressed").question
    cells = answers[answers.question == telling[telling.isin(answers.question)].iloc[0]]
    cell = cells.loc[(cells.share - cells.population_share).idxmax()]
    first = card.split("telling answers</h4>")[1].split("<tbody>")[1].split("</tr>")[0]
    assert f"{100 * cell.share:.0f}%" in first
    assert f"{cell['count']:.0f} of {cell.n:.0f}" in first
    assert f"{cohorts.summary_.people[0]:,} people" in card


# what would follow from what is shown ----------------------------------------------------------------------------
def test_what_a_card_shows_gives_no_small_cell_away():
    """A reader's subtraction: the counts of a question or trait in a card leave out nobody, or ten people and more."""
    survey = load_sample()
    fitted = Cohorts(k=6).fit(OpinionModel(n_components=3).fit(survey), survey)
    gaps = {}
    for name, cohorts in (("as fitted", fitted), ("as shown", fitted.protected())):
        answers = cohorts.profiles_.answers
        traits = cohorts.profiles_.traits.rename(columns={"trait": "question"})
        cells = pd.concat([answers, traits]).groupby(["question", "cohort"])
        hidden = (cells.n.first() - cells["count"].sum())[cells["count"].count() > 0]
        gaps[name] = ((hidden > 0) & (hidden < 10)).sum()
    assert gaps["as fitted"] > 0  # so that the next line can fail
    assert gaps["as shown"] == 0


def test_the_report_shows_protected_profiles(bundle):
    """Of the trait with five hermits, neither side's count is shown where the hermits would follow from it."""
    fitted = bundle.cohorts.profiles_.traits
    given_away = fitted[(fitted.trait == "side") & ~fitted.suppressed.astype(bool)]
    hermits = fitted[fitted.value == "hermit"].set_index("cohort")
    page = without_plotly(report(bundle))
    for cell in given_away.itertuples():
        alone = (given_away.cohort == cell.cohort).sum() == 1
        if alone and cell.n > cell.count and hermits.suppressed[cell.cohort]:
            assert f"{cell.count:.0f} of {cell.n:.0f}</td>" not in page.split(f"<h3>cohort-{cell.cohort}</h3>")[1]
    assert "would tell them by subtraction" in page


def test_the_size_of_a_small_cohort_does_not_follow_from_the_others(people, survey, tmp_path):
    cohorts = Cohorts(k=2).fit(people, survey)
    cohorts.labels_ = np.where(np.arange(120) < 4, 1, 0)
    cohorts._summarise()
    html = without_plotly(report(Bundle.write(tmp_path / "b", people, cohorts)))
    assert "116 people" not in html
    assert html.count("too few people to say how many") == 2


# what is not there -----------------------------------------------------------------------------------------------
def test_without_steerer_and_evaluation(page):
    assert "has no steerer" in page
    assert "No evaluation was given" in page
    assert "training curve" not in page
    assert 'id="k"' in page


def test_without_cohorts(steered):
    html = without_plotly(report(steered))
    assert "has no cohorts" in html
    assert 'id="k"' not in html
    assert len(_FIGURE.findall(html)) == 1 + 1 + 1  # the map plain and by one trait (the other is the same for all)
    assert "steerer and language model" in html
    assert 'aria-label="training curve"' in html


def test_given_k_has_no_curves_and_small_cohorts_no_size(people, survey, tmp_path):
    cohorts = Cohorts(k=2, minimum=61).fit(people, survey)
    small = cohorts.summary_.people.min()
    assert small < 61
    html = without_plotly(report(Bundle.write(tmp_path / "b", people, cohorts)))
    assert "k = 2 was given" in html
    assert "too few people to say how many" in html
    assert f"{small} people" not in html
    assert "does not say what was skipped" in html


# an evaluation ---------------------------------------------------------------------------------------------------
def test_evaluation_tables(bundle, evaluation):
    html = without_plotly(report(bundle, evaluation))
    assert "It is the survey of this bundle." in html
    assert "people who were not fitted, from 5 of their answers" in html
    assert '<td class="number best">65.0%</td>' in html
    assert "&lt;i&gt;m" in html
    assert "<i>m" not in html
    tables = {t.title: t for t in evaluation_tables(read_evaluation(evaluation))}
    assert tables["differences, answer by answer"].rows[0][2:4] == ["+5.0", "+1.0 to +9.0"]
    assert [t for t in tables if "nobody was asked" in t] == []


def test_a_folder_without_evaluation(bundle, tmp_path):
    with pytest.raises(ValueError, match="there is no result"):
        report(bundle, tmp_path)
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="not the result of an evaluation"):
        report(bundle, tmp_path)


# the file --------------------------------------------------------------------------------------------------------
def test_the_bundle_stays_whole(bundle, tmp_path):
    with pytest.raises(BundleError, match="beside it"):
        write_report(bundle, bundle.folder / "report.html")
    out = write_report(bundle, tmp_path / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert write_report(bundle, out) == out
    Bundle.open(bundle.folder)


def test_missing_plotly_is_one_sentence():
    code = "import sys; sys.modules['plotly'] = None; import personae.report.page"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'personae[report]'" in result.stderr.splitlines()[-1]
