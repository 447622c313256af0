from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from personae.bundle import Bundle, BundleError
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
    answers = cohorts.profiles_.answers
    top = cohorts.profiles_.telling.query("cohort == 0 and not suppressed").question.iloc[0]
    cells = answers[(answers.cohort == 0) & (answers.question == top) & ~answers.suppressed]
    cell = cells.loc[(cells.share - cells.population_share).idxmax()]
    first = card.split("telling answers</h4>")[1].split("<tbody>")[1].split("</tr>")[0]
    assert f"{100 * cell.share:.0f}%" in first
    assert f"{cell['count']:.0f} of {cell.n:.0f}" in first
    assert f"{cohorts.summary_.people[0]:,} people" in card


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
    assert "fewer than 61 people" in html
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
