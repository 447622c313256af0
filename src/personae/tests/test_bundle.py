from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.data.account import Account, SurveyError
from personae.people.cohorts import Cohorts
from personae.people.opinion_model import OpinionModel

LM = {"name": "tiny", "hidden_size": 32, "embedding_sha256": "ab"}


class Steerer:
    """What a bundle asks of a steerer."""

    method, placement_, random_state, lm_fingerprint_ = "stand_in", "late", 3, LM

    def save(self, folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"weights")


@pytest.fixture(scope="module")
def people(survey):
    return OpinionModel(n_components=2).fit(survey)


@pytest.fixture(scope="module")
def cohorts(people, survey):
    return Cohorts(k=2).fit(people, survey)


@pytest.fixture
def bundle(tmp_path, people, cohorts):
    account = Account("a.csv", "wide")
    account.add("don't know read as missing", where="row 3, column q1")
    return Bundle.write(tmp_path / "b", people, cohorts, account=account, source={"path": "/data/a.csv"})


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# what is in it ---------------------------------------------------------------------------------------------------
def test_what_was_written_is_read_again(bundle, people, survey):
    opened = Bundle.open(bundle.folder)
    assert opened.people.predict_proba(opened.persona("r007")) == pytest.approx(
        people.predict_proba(people["r007"]), abs=1e-6
    )
    assert opened.manifest["schema"] == 1
    assert opened.manifest["data"]["fingerprint"] == survey.fingerprint
    assert opened.manifest["data"]["source"] == {"path": "/data/a.csv"}
    assert opened.manifest["data"]["account"]["notes"] == [{"reason": "don't know read as missing", "count": 1}]
    assert opened.manifest["seeds"] == {"people": 0, "cohorts": 0}
    assert "cohorts" in opened
    assert "steerer" not in opened
    assert names_in(bundle.folder.parent) == ["b"]  # nothing temporary is left


def test_no_answers_and_no_pickles(bundle, survey):
    for file in bundle.folder.rglob("*"):
        assert file.is_dir() or file.suffix in {".json", ".parquet", ".safetensors"}
        if file.suffix == ".parquet" and file.parent.name == "people":
            assert not set(survey.question_ids) & set(pd.read_parquet(file).columns)
    assert "row 3" not in (bundle.folder / "manifest.json").read_text()


def test_parts_that_were_not_made(tmp_path, people):
    bundle = Bundle.write(tmp_path / "b", people)
    with pytest.raises(BundleError, match="has no cohorts; make them with: personae fit"):
        _ = bundle.cohorts
    with pytest.raises(BundleError, match="has no steerer; make them with: personae steer"):
        _ = bundle.steerer
    assert bundle.persona("r001").name == "r001"


# names -----------------------------------------------------------------------------------------------------------
def test_persona_names(bundle, people):
    assert bundle.persona("cohort-1") == bundle.cohorts[1]
    assert bundle.persona("r007").origin == {"kind": "respondent", "respondent": "r007"}
    assert bundle.persona("trait:side=left").origin["people"] == 60
    blend = bundle.persona("0.7*cohort-0 + 0.3*r007")
    assert blend.vector == pytest.approx(0.7 * bundle.cohorts[0].vector + 0.3 * people["r007"].vector)


def test_a_blend_of_a_trait_value_that_holds_a_plus(bundle):
    blend = bundle.persona("0.5*trait:age=75++.5*r007")
    assert [part["name"] for part in blend.origin["parts"]] == ["age=75+", "r007"]


def test_the_same_persona_twice_in_a_blend(bundle):
    blend = bundle.persona("1*r001+1*r002+2*r001")
    assert [part["weight"] for part in blend.origin["parts"]] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cohort-9", 'no persona "cohort-9"; nearest: cohort-'),
        ("0.5*cohort-0+0.5*r0007", 'no persona "r0007"; nearest: r007'),
        ("cohort-0+cohort-1", "no persona"),
        ("", "no persona"),
        ("trait:side", 'written "trait:NAME=VALUE"'),
        ("trait:sides=left", 'no trait "sides"; nearest: side'),
        ("trait:side=lefd", "nearest: left"),
        ("0*cohort-0+1*cohort-1", "weights are positive"),
    ],
)
def test_unknown_names_say_what_is_near(bundle, name, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        bundle.persona(name)


def test_suppression_of_small_trait_groups(tmp_path, survey, people):
    few = survey.select()
    few.traits["rare"] = ["yes"] * 3 + ["no"] * 117
    bundle = Bundle.write(tmp_path / "few", OpinionModel(n_components=2).fit(few))
    with pytest.raises(SurveyError, match="only 3 people"):
        bundle.persona("trait:rare=yes")


# what is refused -------------------------------------------------------------------------------------------------
def test_a_tampered_file(bundle):
    file = bundle.folder / "people" / "opinion_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"people/opinion_model\.safetensors .*its hash differs.*fit again"):
        Bundle.open(bundle.folder)


def test_a_missing_and_a_foreign_file(bundle):
    extra = bundle.folder / "people" / "more.json"
    extra.write_text("{}")
    with pytest.raises(BundleError, match=r"holds people/more\.json, which is not its own"):
        Bundle.open(bundle.folder)
    extra.unlink()
    (bundle.folder / "people" / ".DS_Store").write_text("")  # what file browsers leave does no harm
    Bundle.open(bundle.folder)
    (bundle.folder / "people" / "questions.parquet").unlink()
    with pytest.raises(BundleError, match=r"lacks people/questions\.parquet; restore"):
        Bundle.open(bundle.folder)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"there is no bundle .*nowhere; make one with: personae fit"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    for content in ("{", "[]", '{"kind": "something else"}', "\xff"):
        (tmp_path / "manifest.json").write_bytes(content.encode("latin1"))
        with pytest.raises(BundleError, match="not that of a bundle"):
            Bundle.open(tmp_path)


def change_manifest(bundle: Bundle, **values: object) -> None:
    file = bundle.folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps(manifest))


def test_a_newer_schema_and_an_incomplete_manifest(bundle):
    change_manifest(bundle, schema=2)
    with pytest.raises(BundleError, match=r"newer personae .schema 2, this one reads 1.; upgrade personae"):
        Bundle.open(bundle.folder)
    change_manifest(bundle, schema=1, files=None)
    with pytest.raises(BundleError, match="incomplete"):
        Bundle.open(bundle.folder)


def test_a_manifest_leads_nowhere_else(bundle):
    change_manifest(bundle, files={"../../etc/passwd": {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="lacks"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_not_replaced(tmp_path, people, kind):
    target = tmp_path / "thesis"
    if kind == "file":
        target.write_text("years of work")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        Bundle.write(target, people)
    assert names_in(tmp_path) == ["thesis"]


def test_what_somebody_put_into_a_bundle_is_not_lost(bundle, people):
    (bundle.folder / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds notes\.txt, which is not its own and would be lost; move it away"):
        Bundle.write(bundle.folder, people)
    assert Bundle.open(bundle.folder).manifest == bundle.manifest


def test_an_empty_folder_is_filled(tmp_path, people):
    (tmp_path / "b").mkdir()
    Bundle.write(tmp_path / "b", people)
    assert Bundle.open(tmp_path / "b").people.n_components_ == 2


# the steerer -----------------------------------------------------------------------------------------------------
def test_a_steerer_is_added_and_the_rest_is_linked(bundle):
    before = (bundle.folder / "people" / "opinion_model.safetensors").stat().st_ino
    steered = bundle.with_steerer(Steerer())
    assert (steered.folder / "people" / "opinion_model.safetensors").stat().st_ino == before
    assert steered.manifest["steerer"] == {"method": "stand_in", "placement": "late", "lm": LM}
    assert steered.manifest["seeds"] == {"people": 0, "cohorts": 0, "steerer": 3}
    assert steered.manifest["data"] == bundle.manifest["data"]
    with pytest.raises(BundleError, match="was replaced while it was open"):
        _ = bundle.cohorts


# crashes ---------------------------------------------------------------------------------------------------------
WRITER = """
import os, signal, sys, time
from pathlib import Path
from personae import bundle, bundle_files

class People:
    fingerprint_, questions_, random_state = "f", (), 0
    def __len__(self): return 0
    def save(self, folder):
        (folder / "half").write_text("half of a file")
        if sys.argv[2] == "saving":
            stop()

def stop():
    print("here", flush=True)
    time.sleep(60)

if sys.argv[2] == "swapping":
    rename = os.rename
    def first_then_stop(a, b):
        rename(a, b)
        stop()
    bundle_files.os.rename = first_then_stop
bundle.Bundle.write(sys.argv[1], People())
"""


@pytest.mark.parametrize("moment", ["saving", "swapping"])
def test_a_killed_writer_leaves_the_old_bundle(bundle, people, moment):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(bundle.folder), moment], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "here\n"
    if moment == "saving":
        with pytest.raises(BundleError, match="another process is writing"):
            Bundle.write(bundle.folder, people)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    opened = Bundle.open(bundle.folder)
    assert opened.manifest == bundle.manifest
    assert len(opened.cohorts) == 2
    opened.with_steerer(Steerer())  # and the next writer clears up
    assert names_in(bundle.folder.parent) == ["b"]
    assert len(Bundle.open(bundle.folder).cohorts) == 2


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_bundle(bundle, people, monkeypatch, call):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            Bundle.write(bundle.folder, people)
    assert names_in(bundle.folder.parent) == ["b"]
    assert Bundle.open(bundle.folder).manifest == bundle.manifest


def test_without_hard_links_files_are_copied(bundle, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    bundle.with_steerer(Steerer())
    assert len(Bundle.open(bundle.folder).cohorts) == 2


# dialogues -------------------------------------------------------------------------------------------------------
def test_a_bundle_without_people(tmp_path):
    from personae.data.dialogues import Dialogue, Dialogues, Turn
    from personae.people.persona import ANYONE

    dialogues = Dialogues([Dialogue("1", (Turn("ann", "Tea?"), Turn("bob", "Yes.")))])
    written = Bundle.write(tmp_path / "b", steerer=Steerer(), dialogues=dialogues, source={"path": "/data/talk.txt"})
    bundle = Bundle.open(written.folder)
    assert bundle.manifest["data"] == {
        "fingerprint": dialogues.fingerprint,
        "dialogues": 1,
        "turns": 2,
        "source": {"path": "/data/talk.txt"},
        "account": None,
    }
    assert bundle.manifest["seeds"] == {"steerer": 3}
    assert bundle.persona("anyone") is ANYONE
    with pytest.raises(BundleError, match="knows nobody by name"):
        bundle.persona("cohort-0")
    with pytest.raises(BundleError, match="was trained on dialogues and has no people"):
        _ = bundle.people
    with pytest.raises(ValueError, match="a bundle holds people, or a steerer with the dialogues"):
        Bundle.write(tmp_path / "c", dialogues=dialogues)
    assert not (tmp_path / "c").exists()
