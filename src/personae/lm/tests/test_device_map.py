"""LMs whose layers lie on several devices: the same numbers as on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from personae.lm.frozen import FrozenLM
from personae.lm.generation import generate
from personae.lm.names import ModelNotFound
from personae.lm.prompts import chat_prompt, letters_prompt
from personae.lm.reading import letter_logits, option_logits, prepare, read
from personae.lm.slots import Row, Start, rows_of
from personae.lm.tiny import tiny_lm

OPTIONS = ["yes", "no", "perhaps not"]
TALK = [{"role": "user", "content": "Roads?"}]


@pytest.fixture
def folder(tmp_path):
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def virtual_tokens(lm: FrozenLM, placement: str) -> object:
    """Two sets of three, for one prompt."""
    draw = torch.Generator().manual_seed(0)
    if placement != "prefix":
        return torch.randn(1, 2, 3, lm.hidden_size, generator=draw).to(lm.device)
    shapes = [(2, heads, 3, size) for heads, size in lm.key_shapes]
    return [tuple(torch.randn(shape, generator=draw).to(lm.device) for _ in range(2)) for shape in shapes]


@torch.no_grad()
def everything(lm: FrozenLM, placement: str) -> dict[str, object]:
    """Letters, texts of options, greedy talk, and talk in slots."""
    virtual = virtual_tokens(lm, placement)
    prepared = prepare(lm, [letters_prompt(lm, "More roads?", OPTIONS, placement)])
    rows = virtual if isinstance(virtual, list) else virtual[0]
    asked = [chat_prompt(lm, TALK, placement)] * 2
    each = [[(k[i], v[i]) for k, v in rows] if isinstance(rows, list) else rows[i] for i in range(2)]
    slots, people = rows_of(lm), [Row(), Row()]
    first = slots.join(people, [Start(p, v) for p, v in zip(asked, each, strict=True)])
    second = slots.step([5] * 2)
    found = {
        "letters": letter_logits(lm, read(lm, prepared, virtual), [3]),
        "texts": option_logits(lm, prepared, virtual, [OPTIONS], "text"),
        "slots": torch.stack([first, second]),
        "vocabulary": lm.logits(first),
        "talk": generate(lm, asked, rows, max_new_tokens=6),
        "fingerprint": lm.fingerprint,
        "scale": lm.embedding_scale,
    }
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in found.items()}


def same(ours: dict[str, object], theirs: dict[str, object]) -> None:
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, msg=name)
        else:
            assert ours[name] == value, name


def halves(lm: FrozenLM) -> tuple[list[str], list[str]]:
    """Names of the modules that stand for themselves: all but the second of two layers, and the second."""
    layers = next(name for name, m in lm.model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    parent = layers.rpartition(".")[0]
    names = [name for name, _ in lm.model.named_children() if name != parent]
    names += [f"{parent}.{n}" for n, _ in lm.model.get_submodule(parent).named_children() if f"{parent}.{n}" != layers]
    return [*names, f"{layers}.0"], [f"{layers}.1"]


@pytest.mark.parametrize("placement", ["late", "prefix"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_on_the_disk(architecture, placement, tmp_path):
    lm = tiny_lm(architecture)
    alone = everything(lm, placement)
    lm.model.set_attn_implementation("sdpa")
    here, there = halves(lm)
    where = {**dict.fromkeys(here, "cpu"), **dict.fromkeys(there, "disk")}
    split = FrozenLM(dispatch_model(lm.model, where, "cpu", offload_dir=tmp_path), lm.tokenizer, lm.name)
    assert split.split
    assert split.shared
    same(everything(split, placement), alone)


def test_everything_on_the_disk(tmp_path):
    """Embeddings, too: no weight may be read but by way of its module."""
    lm = tiny_lm()
    alone = everything(lm, "late")
    lm.model.set_attn_implementation("sdpa")
    here, there = halves(lm)
    where = {**dict.fromkeys(here, "disk"), **dict.fromkeys(there, "cpu")}
    split = FrozenLM(dispatch_model(lm.model, where, "cpu", offload_dir=tmp_path), lm.tokenizer, lm.name)
    assert split.embedding.weight.device == torch.device("meta")
    same(everything(split, "late"), alone)


def test_gradients_pass_through_layers_on_the_disk(tmp_path):
    lm = tiny_lm()

    def gradient(lm: FrozenLM) -> torch.Tensor:
        virtual = virtual_tokens(lm, "late").requires_grad_(True)
        prepared = prepare(lm, [letters_prompt(lm, "More roads?", OPTIONS, "late")])
        letter_logits(lm, read(lm, prepared, virtual), [3]).log_softmax(-1)[..., 0].sum().backward()
        return virtual.grad

    alone = gradient(lm)
    lm.model.set_attn_implementation("sdpa")
    here, there = halves(lm)
    where = {**dict.fromkeys(here, "cpu"), **dict.fromkeys(there, "disk")}
    split = FrozenLM(dispatch_model(lm.model, where, "cpu", offload_dir=tmp_path), lm.tokenizer, lm.name)
    torch.testing.assert_close(gradient(split), alone)
    assert alone.abs().max() > 0


def test_two_devices():
    """Nothing is computed from tensors of two devices, which none of this machine's may be able to tell."""
    program = Path(__file__).with_name("pretend_devices.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    if "cannot import name '_setup_privateuseone_for_python_backend'" in done.stderr:
        pytest.skip("this torch cannot pretend devices")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 9


def test_load(folder):
    whole = FrozenLM.load(str(folder), dtype="float32", device="cpu")
    mapped = FrozenLM.load(str(folder), dtype="float32", device_map={"": "cpu"})
    assert not mapped.split
    assert FrozenLM.load(str(folder), dtype="float32", device_map={"": "cpu"}) is mapped
    same(everything(mapped, "late"), everything(whole, "late"))
    with pytest.raises(ValueError, match="device or device_map, not both"):
        FrozenLM.load(str(folder), device="cpu", device_map="auto")


# quantised -------------------------------------------------------------------------------------------------------
def test_a_quantiser_that_is_not_installed_is_named(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelNotFound, match=r"cannot be loaded as a causal LM in safetensors format: .*(?i:gptq|optimum)"
    ):
        FrozenLM.load(str(folder))


def test_int8_weights(folder, tmp_path):
    pytest.importorskip("torchao", reason="no quantiser is installed; pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    how = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, device_map={"": "cpu"})
    quantised.save_pretrained(tmp_path / "int8")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "int8")
    whole, few = (FrozenLM.load(str(f), dtype="float32", device="cpu") for f in (folder, tmp_path / "int8"))
    assert few.quantised
    assert few.shared
    assert not whole.quantised
    ours, theirs = everything(few, "late")["vocabulary"], everything(whole, "late")["vocabulary"]
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.1
    virtual = virtual_tokens(few, "late").requires_grad_(True)
    prepared = prepare(few, [letters_prompt(few, "More roads?", OPTIONS, "late")])
    letter_logits(few, read(few, prepared, virtual), [3]).sum().backward()
    assert virtual.grad.abs().max() > 0


def test_a_quantised_output_matrix_is_refused():
    lm = tiny_lm()
    few = torch.zeros(lm.embedding.num_embeddings, lm.hidden_size, dtype=torch.uint8)
    lm.model.lm_head.weight = torch.nn.Parameter(few, requires_grad=False)
    with pytest.raises(ValueError, match="the output matrix of tiny-llama is quantised"):
        FrozenLM(lm.model, lm.tokenizer, lm.name)
