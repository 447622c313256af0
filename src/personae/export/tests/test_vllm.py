"""Requests hold, number by number, what the steerer was trained on; `decode` stands for the server."""

from __future__ import annotations

import base64
import copy
import io
import json
import math

import pytest
import torch

from personae.data.survey import Question
from personae.export.vllm import encode, export_vllm, vllm_request
from personae.lm.frozen import FrozenLM
from personae.lm.tiny import tiny_lm, tiny_tokenizer

NEW = Question("", "Should trains be free?", ("no", "perhaps", "yes"))
CHAT = [{"role": "user", "content": "What worries you?"}]


def decode(data):
    """As the server reads it: ours, made a moment ago."""
    return torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)


@torch.no_grad()
def logits_of(lm, rows):
    return lm.model(inputs_embeds=rows[None], attention_mask=torch.ones(1, len(rows))).logits[0, -1]


@pytest.mark.parametrize("placement", ["late", "system", "before"])
def test_a_request_answers_as_the_steerer_does(train, people, placement):
    steerer = train("llama", placement=placement)
    line = vllm_request(steerer, people["person-000"], NEW, model="served")
    body, about = line["body"], line["personae"]
    assert (line["method"], line["url"]) == ("POST", "/v1/completions")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("served", 1, 0.0)
    assert list(about["options"]) == [f"token_id:{i}" for i in body["logprob_token_ids"]]
    log_p = torch.log_softmax(logits_of(steerer.lm_, decode(body["prompt_embeds"])), 0)
    shares = torch.softmax(about["sharpness"] * log_p[body["logprob_token_ids"]], 0)
    wanted = steerer.answer(NEW.text, NEW.options, people["person-000"])
    assert list(about["options"].values()) == list(wanted.columns)
    assert shares.tolist() == pytest.approx(wanted.iloc[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(("placement", "role"), [("late", "assistant"), ("system", "system")])
def test_a_chat_holds_the_virtual_tokens_as_a_content_part(train, people, placement, role):
    steerer = train("llama", placement=placement)
    line = vllm_request(steerer, people["person-000"], CHAT, max_tokens=7)
    assert line["url"] == "/v1/chat/completions"
    body = line["body"]
    (slot,) = [m for m in body["messages"] if m not in CHAT]
    assert slot["role"] == role
    assert body["messages"].index(slot) == (1 if placement == "late" else 0)
    assert body["add_generation_prompt"] is (placement == "system")
    assert body["continue_final_message"] is (placement == "late")
    assert (body["max_tokens"], body["stop_token_ids"]) == (7, sorted(steerer.lm_.stop_ids))
    ((part,),) = (slot["content"],)
    assert part["type"] == "prompt_embeds"
    assert torch.equal(decode(part["data"]), steerer.chat_rows(CHAT, [people["person-000"]]).virtual[0])


def whole(steerer, persona, messages):
    """Embeddings (n, H) of a chat with its virtual tokens."""
    rows = steerer.chat_rows(messages, [persona])
    (prompt,), embed = rows.prompts, steerer.lm_.embed
    return torch.cat([embed(prompt.before), rows.virtual[0], embed(prompt.after)])


def without_template():
    return tiny_lm("llama", chat=False)


def default_system():
    """A template that writes a system message of its own, and the date, where a reply is opened by hand."""
    lm = tiny_lm("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for", "{% if messages[-1]['role'] == 'assistant' %}Note.{% endif %}{% for", 1
    )
    return FrozenLM(lm.model, tokenizer, "with-note")


@pytest.mark.parametrize(
    ("make", "placement", "messages"),
    [
        (lambda: "llama", "before", CHAT),
        (lambda: "llama", "late", [{"role": "user", "content": "Say <|im_end|> twice"}]),  # special on the server
        (lambda: "llama", "system", [{"role": "system", "content": "Be brief."}, *CHAT]),
        (without_template, "late", CHAT),
        (default_system, "late", CHAT),
    ],
)
def test_the_whole_prompt_is_sent_where_the_server_would_write_another(train, people, make, placement, messages):
    steerer = train(make(), placement=placement)
    line = vllm_request(steerer, people["person-000"], messages)
    assert line["url"] == "/v1/completions"
    assert "messages" not in line["body"]
    rows = decode(line["body"]["prompt_embeds"])
    assert torch.equal(rows, whole(steerer, people["person-000"], messages))
    assert line["body"].get("stop") == (None if steerer.lm_.template.is_chat else ["\n"])


def test_a_view_is_saved_without_what_it_is_a_view_of():
    many = torch.zeros(1000, 32)
    assert len(encode(many[:1])) < 4000


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_row_that_is_not_finite_is_written(train, people, tmp_path, bad):
    rows = torch.zeros(2, 32)
    rows[1, 3] = bad
    with pytest.raises(ValueError, match="not finite is never written"):
        encode(rows)
    steerer = copy.deepcopy(train("llama", recipe="paper", placement="late"))
    steerer.network_.mlp[-1].bias.data[5] = bad
    for context in (NEW, CHAT):
        with pytest.raises(ValueError, match="not finite, so nothing is written"):
            export_vllm(steerer, [people["person-000"]], [context], tmp_path / "requests.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_word_of_the_language_model_that_is_not_finite_is_not_written_either(train, people):
    steerer = copy.copy(train("llama", recipe="paper", placement="before"))
    steerer.lm_ = copy.deepcopy(steerer.lm_)
    steerer.lm_.embedding.weight.data[steerer.lm_.tokens("trains")[0]] = torch.inf
    with pytest.raises(ValueError, match="not finite is never written"):
        vllm_request(steerer, people["person-000"], NEW)


def test_key_values_have_no_place_in_vllm(train, people):
    with pytest.raises(ValueError, match=r'placement "prefix".*--placement late'):
        vllm_request(train("llama", recipe="paper"), people["person-000"], NEW)


def test_one_line_a_request(train, people, tmp_path):
    two = [people["person-000"], people["person-119"]]
    lines = export_vllm(train("llama"), two, [NEW, CHAT], tmp_path / "requests.jsonl")
    read = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert read == lines
    assert [line["custom_id"] for line in read] == ["0-person-000", "0-person-119", "1-person-000", "1-person-119"]
    assert len({line["body"].get("prompt_embeds") or json.dumps(line["body"]["messages"]) for line in read}) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["requests.jsonl"]
