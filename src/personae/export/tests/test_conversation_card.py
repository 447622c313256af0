"""Cards of bundles that were trained on dialogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from personae.bundle import Bundle
from personae.data.account import Account
from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.evaluation.converse import converse
from personae.evaluation.talk_plan import make_talk_plan
from personae.export import hub
from personae.export.card import bundle_card
from personae.export.tests.test_hub import Hub
from personae.lm.tiny import tiny_lm
from personae.steering.selective import Selective

ABOUT = ("i like tea .", "i have a dog .", "i am old .")
BANK = {"n_prompts": 2, "n_tokens": 2, "steps": 2}


@pytest.fixture(scope="module")
def dialogues() -> Dialogues:
    account = Account("/home/ann/secret/talk.txt", "convai2")
    account.add("turn without | text", count=2)
    turns = [(Turn("bob", f"hello {i} ?"), Turn("ann", "tea !" if i % 2 else "my dog !")) for i in range(24)]
    return Dialogues([Dialogue(str(i), t, {"ann": (ABOUT[i % 3],)}) for i, t in enumerate(turns)], account)


@pytest.fixture(scope="module")
def bundle(dialogues, tmp_path_factory) -> Bundle:
    lm = tiny_lm()
    lm.name = "org/tiny"
    steerer = Selective(lm, **BANK).fit(dialogues, progress=False)
    source = {"path": "/home/ann/secret/talk.txt"}
    folder = tmp_path_factory.mktemp("talk") / "bank"
    return Bundle.write(folder, steerer=steerer, account=dialogues.account, source=source, dialogues=dialogues)


@pytest.fixture
def evaluation(dialogues, tmp_path) -> Path:
    plan = make_talk_plan(dialogues, held_out=0.25, replies=4, swapped=4)
    rows = ["persona as text", "SPT"]
    converse(plan, tmp_path, rows, tiny_lm(), **BANK, new_tokens=4, progress=False)
    return tmp_path


def test_what_the_bank_is_and_where_it_comes_from(bundle):
    card = ModelCard(bundle_card(bundle, "ann/bank"))
    assert card.data.base_model == "org/tiny"
    assert "survey" not in card.data.tags
    assert card.data.eval_results is None
    assert "Virtual tokens with which org/tiny talks as whoever is described to it" in card.text
    assert "learned from 24 dialogues (48 turns)" in card.text
    assert "2 prompts of 2 virtual tokens each, 50% of them the same for all, and the retriever" in card.text
    assert "Recipe mixture, at most 2 steps, seed 0; kept are the weights of step 2" in card.text
    assert "Read from talk.txt (convai2)." in card.text
    assert "| 2 | turn without \\| text |" in card.text
    assert "personae converse chat hf:ann/bank" in card.text
    assert "The publisher names no licence." in card.text
    assert "/home" not in card.content


def test_a_collapsed_bank_is_called_one_prompt(bundle, tmp_path):
    for used, collapsed in ((1.02, True), (1.9, False)):
        file = bundle.folder / "steerer" / "steerer.json"
        before = file.read_text()
        about: dict[str, Any] = json.loads(before)
        about["history"] = [{"step": 2, "loss": 3.0, "nll": 2.5, "prompts in use": used}]
        file.write_text(json.dumps(about))
        try:
            assert ("in truth it is one prompt" in bundle_card(bundle, "ann/bank")) is collapsed
        finally:
            file.write_text(before)


def test_results_of_the_same_settings_are_those_of_the_model(bundle, evaluation):
    card = ModelCard(bundle_card(bundle, "ann/bank", evaluation, "cc-by-4.0", "Ann's talks, 2026"))
    result = json.loads((evaluation / "result.json").read_text())
    measured = {line["metric"]: line["estimate"] for line in result["table"] if line["row"] == "SPT"}
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found["nll"] == pytest.approx(measured["nll"], abs=1e-4)
    assert {r.dataset_name for r in card.data.eval_results} == {"talk.txt, test"}
    assert card.data.license == "cc-by-4.0"
    assert "Ann's talks, 2026" in card.text
    assert "The row SPT has the settings of this one." in card.text
    assert f"| SPT | {measured['nll']:.3f} |" in card.text
    assert "### Use of the prompts" in card.text
    result["settings"]["dialogues"] = "others"
    (evaluation / "result.json").write_text(json.dumps(result))
    card = ModelCard(bundle_card(bundle, "ann/bank", evaluation))
    assert card.data.eval_results is None
    assert "None of the rows has the LM, the dialogues and the settings of this one." in card.text


def test_an_evaluation_of_the_other_kind_is_refused(bundle, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"tables": {}}))
    with pytest.raises(ValueError, match=r"no result of conversations; make one with: personae converse evaluate"):
        bundle_card(bundle, "ann/bank", tmp_path)


def test_the_bundle_is_pushed_and_comes_back(bundle, tmp_path, monkeypatch):
    there = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", there.client)
    monkeypatch.setattr(hub, "snapshot_download", there.snapshot_download)
    bundle.push_to_hub("ann/bank")
    back = Bundle.from_pretrained("ann/bank")
    assert back.manifest["files"] == bundle.manifest["files"]
    assert "people" not in back
    written = [file.read_text() for file in (back.folder / "README.md", back.folder / "manifest.json")]
    assert "learned from 24 dialogues" in written[0]
    assert not any("/home" in text for text in written)
