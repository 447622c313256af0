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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personae.data.survey import Question
from personae.export.prompt import Context, ExportedPrompt
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Prompt
from personae.people.persona import Persona

_SLOT = "<prompt_embeds>"  # what vLLM's template writes where embeddings go


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
        raise ValueError(
            'vLLM takes virtual tokens among the text, and this steerer was trained with placement "prefix", whose are '
            "keys and values: train one with: personae steer BUNDLE --placement late"
        )
    lm, virtual = made.steerer.lm_, made.virtual.float().cpu()
    body: dict[str, Any] = {"model": model or lm.name, "temperature": 0.0}
    about: dict[str, Any] = {"persona": persona.name}
    chat = None
    if isinstance(context, Question):
        options = dict(zip(made.letters.values(), context.options, strict=True))
        body |= {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": list(options)}
        body["return_tokens_as_token_ids"] = True  # letters may be written alike, their tokens are not
        about |= {"question": context.text, "options": {f"token_id:{i}": option for i, option in options.items()}}
        about["sharpness"] = made.sharpness
    else:
        body |= {"max_tokens": max_tokens, "stop_token_ids": sorted(lm.stop_ids)}
        if not lm.template.is_chat:
            body["stop"] = ["\n"]  # a base model's turn ends with its line
        about["messages"] = list(context)
        chat = _chat(lm, context, made.prompt, made.steerer.placement_, virtual)
    if chat is not None:
        return {"method": "POST", "url": "/v1/chat/completions", "body": {**body, **chat}, "personae": about}
    with torch.no_grad():
        before, after = (lm.embed(ids).float().cpu() for ids in (made.prompt.before, made.prompt.after))
    body["prompt_embeds"] = encode(torch.cat([before, virtual, after]))
    return {"method": "POST", "url": "/v1/completions", "body": body, "personae": about}


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
    torch.save(rows.clone(), buffer)  # a view would be saved with everything that it is a view of
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _chat(
    lm: FrozenLM, messages: Sequence[Message], prompt: Prompt, placement: str, virtual: Tensor
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
    return {"messages": with_slot([{"type": "prompt_embeds", "data": encode(virtual)}]), **how}


def _server_tokens(
    lm: FrozenLM, messages: list[dict[str, Any]], how: dict[str, bool]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The tokens before and after the slot as the server will make them, where special tokens count in user text, too;
    None if the template refuses the chat."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [_SLOT]})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    except Exception:  # a template may refuse in its own way
        return None
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    slot = tokenizer.convert_tokens_to_ids(_SLOT)
    return (ids[: ids.index(slot)], ids[ids.index(slot) + 1 :]) if ids.count(slot) == 1 else None
