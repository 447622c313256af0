"""Bundles on the Hugging Face hub: upload and download by the hub's own client."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from personae.bundle_files import PARTS, BundleError, Opened, checked_manifest
from personae.export.card import bundle_card
from personae.lm.names import EMBEDDED, is_hub_id


def push(
    bundle: Opened,
    repo_id: str,
    token: str | None = None,
    private: bool = True,
    revision: str | None = None,
    commit_message: str = "Bundle of personae",
    evaluation: Path | str | None = None,
    license: str | None = None,
    attribution: str | None = None,
) -> str:
    """Upload a bundle with a model card; what was there is replaced in one commit.

    Parameters
    ----------
    repo_id : str
        ``owner/name``; made if it does not exist.
    token : str, optional
        By default that of ``hf auth login``.
    private : bool
        Whether the repository must be private: a bundle holds a vector and the traits of every person.
    revision : str, optional
        A branch; ``main`` by default.
    evaluation, license, attribution
        For the card, see `personae.export.card.bundle_card`.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    BundleError
        The LM of the steerer is a folder, the repository is public though it must be private, or the hub refuses.
    """
    _check_lm(bundle)
    card = bundle_card(bundle, repo_id, None if evaluation is None else Path(evaluation), license, attribution)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        public = private and not api.repo_info(repo_id).private
    except Exception as error:
        raise BundleError(f"{repo_id} cannot be made on the hub ({_reason(error)}); nothing was uploaded") from error
    if public:
        raise BundleError(
            f"{repo_id} is there already and public, and a bundle holds a vector and the traits of every person; make "
            "it private, or say that it may be public (--public, private=False)"
        )
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for part in PARTS:
            if part in bundle:
                shutil.copytree(bundle.part(part), folder / part)
        manifest = json.dumps(without_paths(bundle.manifest), indent=1, ensure_ascii=False)
        (folder / "manifest.json").write_text(manifest, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        checked_manifest(folder)  # what is uploaded is a bundle
        try:
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=[f"{part}/*" for part in PARTS],  # of an older bundle, which a new one may not hold
            )
        except Exception as error:
            raise BundleError(f"{repo_id} could not be uploaded to ({_reason(error)}); try again") from error
    return str(getattr(done, "commit_url", done))


def pull(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a bundle: a local one, or that of the hub's cache after a download.

    Parameters
    ----------
    name : str or Path
        A folder, or ``owner/name``.
    revision : str, optional
        A branch, tag or commit of the hub's repository.

    Raises
    ------
    BundleError
        There is neither such a folder nor such a repository.
    """
    if os.path.isdir(name):
        return Path(name)
    if not is_hub_id(str(name)):
        raise BundleError(f"there is no bundle {name}: give a folder, or owner/name of the hub")
    patterns = ["manifest.json", "README.md", *(f"{part}/*" for part in PARTS)]
    try:
        return Path(snapshot_download(str(name), revision=revision, token=token, allow_patterns=patterns))
    except Exception as error:
        raise BundleError(
            f"{name} is neither in the hub's cache nor can it be fetched ({_reason(error)}); "
            "check the name, the connection and hf auth login"
        ) from error


def without_paths(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that names files without their folders, which are nobody's business."""
    data = dict(manifest["data"])
    files = {k: v for k, v in data.get("source", {}).items() if v and k in ("path", "questions", "respondents")}
    data["source"] = {**data.get("source", {}), **{k: Path(v).name for k, v in files.items()}}
    if data.get("account"):
        data["account"] = {**data["account"], "source": Path(data["account"]["source"]).name}
    return {**manifest, "data": data}


def _check_lm(bundle: Opened) -> None:
    """A steerer of an LM that nobody else can load is of no use to them, and would publish where it lies."""
    steerer = bundle.manifest["steerer"]
    name = "" if steerer is None else str(steerer["lm"]["name"])
    if name and name not in EMBEDDED and (not is_hub_id(name) or Path(name).exists()):
        raise BundleError(
            f"the steerer was trained with the LM in the folder {name}, which others do not have; train it with the "
            "hub id of that LM: personae steer BUNDLE --lm org/model"
        )


def _reason(error: Exception) -> str:
    """One line of what the hub's client says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0].rstrip('.')}" if said else type(error).__name__
