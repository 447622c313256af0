"""`export_vllm`: requests for a stock vLLM in which personas answer and talk.

vLLM takes embeddings where others take text (``vllm serve MODEL --enable-prompt-embeds``), so it needs to know nothing
of personae. A request holds either the embeddings of the whole prompt, virtual tokens included (``/v1/completions``),
or a chat of which one content part is the virtual tokens (``/v1/chat/completions``): short, and written by the server's
own chat template. The second form is used where that template gives, token by token, what the steerer was trained on.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from personae.data.survey import Question
from personae.export.prompt import Context, ExportedPrompt
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Prompt
from personae.people.persona import Persona

NO_PREFIX = (
    'vLLM takes virtual tokens among the text, and this steerer was trained with placement "prefix", whose are '
    "keys and values: train one with: personae steer BUNDLE --placement late"
)
_SLOT = "<prompt_embeds>"  # what vLLM's template writes where embeddings go
# A server takes what a request leaves open from the LM's own configuration, which may penalise or cut off tokens.
_NOTHING_ELSE = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def export_vllm(
    steerer: Any,
    personas: Sequence[Persona],
    contexts: Sequence[Context],
    file: Path | str,
    model: str | None = None,
    max_tokens: int = 80,
) -> list[dict[str, Any]]:
    """Write a request for every persona in every context, one a line, as OpenAI's batch files have them.

    Returns
    -------
    list of dict
        The lines; see `vllm_request`.

    Raises
    ------
    ValueError
        See `vllm_request`; nothing is written then.
    """
    lines = [
        {"custom_id": f"{i}-{persona.name}", **vllm_request(steerer, persona, context, model, max_tokens)}
        for i, context in enumerate(contexts)
        for persona in personas
    ]
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, file)
    return lines


def vllm_request(
    steerer: Any, persona: Persona, context: Context, model: str | None = None, max_tokens: int = 80
) -> dict[str, Any]:
    """One request, and how its answer is read.

    Parameters
    ----------
    steerer : PersonaPrompt
    context : Question or list of messages
        A question is answered by the probabilities of its letters, a chat is continued greedily.
    model : str, optional
        The name under which vLLM serves the LM; the LM's own by default.
    max_tokens : int
        Of a reply.

    Returns
    -------
    dict
        ``method``, ``url`` and ``body`` of the request, and ``personae``: the persona, the question with its options or
        the chat, and for a question ``options`` (name of the token in the answer's ``top_logprobs`` to option) and
        ``sharpness``. The options' probabilities are softmax(sharpness * log-probabilities).

    Raises
    ------
    ValueError
        Placement ``prefix``, which vLLM has no place for, or virtual tokens that are not finite.

    Examples
    --------
    >>> from personae import OpinionModel, PersonaPrompt, Question, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> steerer = PersonaPrompt(tiny_lm(), "paper", "late", steps=2).fit(survey, people, progress=False)
    >>> line = vllm_request(steerer, people["r0001"], Question("", "Free trains?", ("no", "yes")))
    >>> line["url"], list(line["personae"]["options"].values())
    ('/v1/completions', ['no', 'yes'])
    """
    made = ExportedPrompt.make(steerer, persona, context)
    if not isinstance(made.virtual, Tensor) or made.prompt is None:
        raise ValueError(NO_PREFIX)
    lm = made.steerer.lm_
    about: dict[str, Any] = {"persona": persona.name}
    if isinstance(context, Question):
        options = dict(zip(made.letters.values(), context.options, strict=True))
        url, body = reading_request(lm, made.prompt, made.virtual[None], list(options))
        (body["prompt_embeds"],) = body["prompt_embeds"]
        about |= {"question": context.text, "options": {token_name(i): option for i, option in options.items()}}
        about["sharpness"] = made.sharpness
    else:
        url, body = reply_request(lm, made.prompt, made.virtual, max_tokens, context, made.steerer.placement_)
        if not lm.template.is_chat:
            body["stop"] = ["\n"]  # a base model's turn ends with its line
        about["messages"] = list(context)
    return {"method": "POST", "url": url, "body": {"model": model or lm.name, **body}, "personae": about}


def reading_request(
    lm: FrozenLM, prompt: Prompt, virtual: Tensor, ids: Sequence[int], then: Sequence[int] = ()
) -> tuple[str, dict[str, Any]]:
    """URL and body of a request for log-probabilities of some tokens; the model's name is the caller's.

    Parameters
    ----------
    virtual : Tensor (N, T, H)
        Of N personas; the answer has a choice for each, in this order.
    ids : sequence of int
        Tokens whose log-probabilities are wanted; each is named by `token_name` in the choice's ``top_logprobs``.
    then : sequence of int
        Tokens that follow the prompt, before the place that is read.
    """
    prompts = [encode(rows) for rows in embedded(lm, Prompt(prompt.before, (*prompt.after, *then)), virtual)]
    body = {**_NOTHING_ELSE, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "logprob_token_ids": list(ids)}
    # Tokens may be written alike, their numbers are not
    return "/v1/completions", {**body, "return_tokens_as_token_ids": True, "prompt_embeds": prompts}


def token_name(token: int) -> str:
    """What vLLM calls a token in the answer to `reading_request`."""
    return f"token_id:{token}"


def reply_request(
    lm: FrozenLM,
    prompt: Prompt,
    virtual: Tensor | None,
    max_tokens: int,
    messages: Sequence[Message] | None = None,
    placement: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """URL and body of a request for a greedy continuation; the model's name is the caller's.

    Parameters
    ----------
    virtual : Tensor (T, H), optional
    messages : list of messages, optional
        The chat that the prompt is made of, with the placement of its virtual tokens: it is sent as a chat where the
        server's template makes the same tokens of it, which is shorter.
    """
    body = {**_NOTHING_ELSE, "max_tokens": max_tokens, "temperature": 0.0, "stop_token_ids": sorted(lm.stop_ids)}
    if messages is not None and virtual is not None:
        chat = _chat(lm, messages, prompt, placement, virtual)
        if chat is not None:
            return "/v1/chat/completions", {**body, **chat}
    (rows,) = embedded(lm, prompt, None if virtual is None else virtual[None])
    return "/v1/completions", {**body, "prompt_embeds": encode(rows)}


@torch.no_grad()
def embedded(lm: FrozenLM, prompt: Prompt, virtual: Tensor | None) -> list[Tensor]:
    """The whole prompt as the LM reads it, (n, H) each, for N sets of virtual tokens (N, T, H); one without."""
    before, after = lm.embed(prompt.before), lm.embed(prompt.after)
    sets = [before[:0]] if virtual is None else virtual.to(lm.device, lm.dtype)
    return [torch.cat([before, own, after]) for own in sets]


def encode(rows: Tensor) -> str:
    """Rows (n, H) as vLLM reads them: a saved tensor in base64.

    Raises
    ------
    ValueError
        A row is not finite: a server that gets one fails the requests of others.
    """
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(
            "a row that is not finite is never written: a server that gets it fails the requests of others"
        )
    buffer = io.BytesIO()
    torch.save(rows.detach().cpu().clone(), buffer)  # a view would be saved with everything that it is a view of
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _chat(
    lm: FrozenLM, messages: Sequence[Message], prompt: Prompt, placement: str | None, virtual: Tensor
) -> dict[str, Any] | None:
    """The chat as vLLM is to get it, or None where its template would write another sequence of tokens."""
    if placement == "system" and messages[0]["role"] != "system":
        role, how = "system", {"add_generation_prompt": True, "continue_final_message": False}
    elif placement == "late":  # virtual tokens open the reply, which the LM goes on with
        role, how = "assistant", {"add_generation_prompt": False, "continue_final_message": True}
    else:
        return None

    def with_slot(content: Any) -> list[dict[str, Any]]:
        slot = {"role": role, "content": content}
        return [slot, *messages] if role == "system" else [*messages, slot]

    if _server_tokens(lm, with_slot(_SLOT), how) != (prompt.before, prompt.after):
        return None
    return {"messages": with_slot([{"type": "prompt_embeds", "data": encode(virtual.to(lm.dtype))}]), **how}


def _server_tokens(
    lm: FrozenLM, messages: list[dict[str, Any]], how: dict[str, bool]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The tokens before and after the slot as the server will make them, where special tokens count in user text, too;
    None if the template refuses the chat."""
    tokenizer = _with_slot(lm.tokenizer)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    except Exception:  # a template may refuse in its own way
        return None
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    slot = tokenizer.convert_tokens_to_ids(_SLOT)
    return (ids[: ids.index(slot)], ids[ids.index(slot) + 1 :]) if ids.count(slot) == 1 else None


@lru_cache(maxsize=2)  # a copy takes longer than a chat
def _with_slot(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [_SLOT]})
    return tokenizer
