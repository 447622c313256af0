"""Upload and download against a stub of the hub: a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from personae.bundle import Bundle
from personae.bundle_files import BundleError
from personae.export import hub


class Hub:
    """What the client does with a repository, on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict]] = []
        self.public: set[str] = set()

    def client(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}))
        if not private:
            self.public.add(repo_id)
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, repo_id):
        return SimpleNamespace(private=repo_id not in self.public)

    def upload_folder(self, repo_id, folder_path, **how):
        self.calls.append(("upload_folder", how))
        there = self.folder / repo_id
        deleted = huggingface_hub.utils.filter_repo_objects(
            [str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()], allow_patterns=how["delete_patterns"]
        )
        for name in deleted:
            (there / name).unlink()
        shutil.copytree(folder_path, there, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, revision, token, allow_patterns):
        self.calls.append(("snapshot_download", {"revision": revision, "allow_patterns": allow_patterns}))
        if not (self.folder / repo_id).is_dir():
            raise FileNotFoundError(f"404 Client Error: {repo_id}\nmore lines")
        return str(self.folder / repo_id)


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", made.client)
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot_download)
    return made


def test_what_is_pushed_comes_back(bundle, stub):
    url = bundle.push_to_hub("ann/town", token="secret")
    assert url == "https://huggingface.co/ann/town/commit/1"
    assert stub.token == "secret"
    assert stub.calls[0] == ("create_repo", {"repo_id": "ann/town", "private": True, "exist_ok": True})
    back = Bundle.from_pretrained("ann/town", revision="v1")
    assert stub.calls[-1][1]["revision"] == "v1"
    assert back.manifest["files"] == bundle.manifest["files"]
    assert back.people["person-007"] == bundle.people["person-007"]
    assert [p.name for p in back.cohorts] == [p.name for p in bundle.cohorts]


def test_the_cache_of_links_is_a_bundle_that_is_not_written_to(bundle, stub, tmp_path, monkeypatch):
    bundle.push_to_hub("ann/town")
    cache = tmp_path / "snapshots" / "1"
    for blob in [p for p in (stub.folder / "ann" / "town").rglob("*") if p.is_file()]:
        link = cache / blob.relative_to(stub.folder / "ann" / "town")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **how: str(cache))
    back = Bundle.from_pretrained("ann/town")
    assert back.people["person-007"] == bundle.people["person-007"]
    with pytest.raises(BundleError, match=r"holds README\.md, which is not its own"):
        back.with_steerer(
            SimpleNamespace(
                method="text", placement_="late", lm_fingerprint_={}, random_state=0, save=lambda folder: None
            )
        )
    assert (cache / "manifest.json").is_symlink()


def test_a_folder_is_a_bundle_too(bundle):
    assert Bundle.from_pretrained(bundle.folder).manifest == bundle.manifest
    assert Bundle.from_pretrained(str(bundle.folder)).manifest == bundle.manifest


def test_folders_of_this_machine_are_not_published(bundle, stub):
    bundle.push_to_hub("ann/town")
    there = stub.folder / "ann" / "town"
    texts = [p.read_text() for p in there.rglob("*") if p.suffix in (".json", ".md")]
    assert not any("/home" in text or "secret" in text for text in texts)
    source = json.loads((there / "manifest.json").read_text())["data"]["source"]
    assert source == {"path": "responses.csv", "questions": None, "traits": ["side"]}
    assert bundle.manifest["data"]["source"]["path"] == "/home/ann/secret/responses.csv"


def test_files_of_an_older_bundle_go(bundle, stub):
    stale = stub.folder / "ann" / "town" / "steerer" / "old.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    bundle.push_to_hub("ann/town")
    assert not stale.exists()
    Bundle.from_pretrained("ann/town")


def test_a_public_repository_must_be_meant(bundle, stub):
    stub.public.add("ann/town")
    with pytest.raises(BundleError, match="is there already and public"):
        bundle.push_to_hub("ann/town")
    assert [name for name, _ in stub.calls] == ["create_repo"]
    bundle.push_to_hub("ann/town", private=False)
    assert (stub.folder / "ann" / "town" / "manifest.json").exists()


def test_a_language_model_that_others_do_not_have_is_not_pushed(people, stub, tmp_path, train):
    steerer = train("llama")
    folder = tmp_path / "my-lm"
    folder.mkdir()
    fingerprint = {**steerer.lm_fingerprint_, "name": str(folder)}
    local = SimpleNamespace(
        method=steerer.method, placement_="late", random_state=0, lm_fingerprint_=fingerprint, save=steerer.save
    )
    bundle = Bundle.write(tmp_path / "town", people, steerer=local)
    with pytest.raises(BundleError, match=r"LM in the folder .*my-lm, which others do not have.*--lm org/model"):
        bundle.push_to_hub("ann/town")
    assert stub.calls == []


def test_failures_are_one_sentence(bundle, stub, monkeypatch):
    with pytest.raises(
        BundleError, match=r"ann/village is neither in the hub's cache.*404 Client Error: ann/village\)"
    ):
        Bundle.from_pretrained("ann/village")
    with pytest.raises(BundleError, match=r"there is no bundle \./nowhere: give a folder, or owner/name"):
        Bundle.from_pretrained("./nowhere")

    def refuse(*args, **how):
        raise ConnectionError("no route to host.\nmore")

    monkeypatch.setattr(stub, "upload_folder", refuse)
    with pytest.raises(BundleError, match=r"could not be uploaded to \(ConnectionError: no route to host\); try again"):
        bundle.push_to_hub("ann/town")


def test_the_client_has_these_calls():
    """The stub's signatures are those of the installed client."""
    import inspect

    for name, used in {
        "create_repo": {"repo_id", "private", "exist_ok"},
        "repo_info": {"repo_id"},
        "upload_folder": {"repo_id", "folder_path", "revision", "commit_message", "delete_patterns"},
    }.items():
        assert used <= set(inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters)
    assert {"revision", "token", "allow_patterns"} <= set(
        inspect.signature(huggingface_hub.snapshot_download).parameters
    )


def test_the_card_is_read_by_the_hub(bundle, stub):
    bundle.push_to_hub("ann/town", license="cc-by-4.0", attribution="Town | council <b>")
    card = ModelCard.load(stub.folder / "ann" / "town" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["base_model"] == "org/tiny"
    assert data["library_name"] == "personae"
    assert "Who 120 people are from their answers to 8 questions" in card.text
    assert "Read from responses.csv (wide)." in card.text
    assert "Town \\| council &lt;b>" in card.text
    assert "| 3 | don't know \\| no answer read as missing |" in card.text
    assert 'Bundle.from_pretrained("ann/town")' in card.text
    assert "person-0" not in card.text  # nobody's id
