"""`check_vllm`: whether a vLLM server serves a steerer's LM as the steerer knows it, before anybody talks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import torch

from personae.export.vllm import reading_request, reply_request, token_name
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Prompt, chat_prompt, plain_prompt
from personae.serving.backend import Unavailable
from personae.serving.vllm_client import VllmClient, json_of
from personae.steering.persona_prompt import PersonaPrompt

_TEXT = "Question: Are 12 % of the trams — l'été, <b>perhaps</b> — free?\nA. no\nB. yes\nAnswer:"
_LIKELIEST = 8  # tokens whose log-probabilities are compared
_FAR = 1.0  # what rounding and quantisation leave is smaller; another LM's differ by more
_USER, _REPLY = {"role": "user", "content": "Are trams free?"}, {"role": "assistant", "content": "Yes."}
_CHATS: list[list[Message]] = [[_USER], [_USER, _REPLY, _USER], [{"role": "system", "content": "Be brief."}, _USER]]


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Parameters
    ----------
    model : str
        The LM's name there.
    limit : int or None
        Tokens it takes at most, if it says so.
    """

    model: str
    limit: int | None


def check_vllm(client: VllmClient, steerer: PersonaPrompt, model: str | None = None) -> Served:
    """Find the LM on the server.

    Parameters
    ----------
    model : str, optional
        Its name there; by default the LM's own, or the only one.

    Raises
    ------
    Unavailable
        Nobody answers, or not as vLLM does.
    ValueError
        It lacks ``--enable-prompt-embeds``, is too old, serves another LM, or another tokenizer or chat template; the
        message says which.
    """
    served = _model(client, steerer.lm_, model)
    _check_numbers(client, steerer.lm_, served.model)
    _check_tokens(client, steerer, served.model)
    return served


def _model(client: VllmClient, lm: FrozenLM, model: str | None) -> Served:
    response = client.ask("/v1/models")
    if response.status_code in (401, 403):
        raise ValueError(f"vLLM at {client.url} refuses the API key; give the right one in VLLM_API_KEY")
    cards = (json_of(response) or {}).get("data")
    if response.status_code != 200 or not cards:
        raise Unavailable(f"what answers at {client.url} is no vLLM server: it has no /v1/models")
    known = {card["id"]: card.get("max_model_len") for card in cards}
    name = model or (lm.name if lm.name in known else next(iter(known)) if len(known) == 1 else None)
    if name is None or name not in known:
        wanted = f'does not serve "{model}"' if model else f"serves several models, and none is called {lm.name}"
        raise ValueError(f"vLLM at {client.url} {wanted}; say which with --model: {', '.join(known)}")
    return Served(name, known[name])


def _check_numbers(client: VllmClient, lm: FrozenLM, model: str) -> None:
    """The flag, the hidden size and the LM itself: log-probabilities after a known text must be ours."""
    prompt = plain_prompt(lm, _TEXT, "late")
    with torch.no_grad():
        ours = lm.logits(lm.encode([prompt.before]).hidden[0, -1]).log_softmax(-1).cpu()  # (V,)
    ids = ours.topk(_LIKELIEST).indices.tolist()
    path, body = reading_request(lm, prompt, torch.zeros(1, 0, lm.hidden_size), ids)
    response = client.ask(path, {"model": model, "return_token_ids": True, **body})
    if response.status_code != 200:
        _explain(client, lm, response)
    try:
        (choice,) = (json_of(response) or {})["choices"]
        found = choice["logprobs"]["top_logprobs"][0]
        theirs = torch.tensor([found[token_name(i)] for i in ids])
        assert choice["token_ids"]
    except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"vLLM at {client.url} does not answer with the log-probabilities and tokens asked for; it is too old: "
            "personae was tested with vLLM 0.32"
        ) from error
    if not bool(((theirs - ours[ids]).abs() < _FAR).all()):  # also of what is not finite
        raise ValueError(
            f'vLLM at {client.url} serves another LM as "{model}" than {lm.name}: log-probabilities after the same '
            f"text differ by {(theirs - ours[ids]).abs().max():.1f}; start it with the LM of the bundle"
        )


def _explain(client: VllmClient, lm: FrozenLM, response: httpx.Response) -> None:
    """Raise what a refusal of the first request means."""
    error = (json_of(response) or {}).get("error", {})
    message = str(error.get("message", "")) if isinstance(error, dict) else str(error)
    if "enable-prompt-embeds" in message:
        raise ValueError(
            f"vLLM at {client.url} takes no embeddings; start it again with: vllm serve MODEL --enable-prompt-embeds"
        )
    if "hidden_size" in message:
        raise ValueError(
            f"vLLM at {client.url} serves an LM of another hidden size than {lm.name}, whose is {lm.hidden_size}; "
            "start it with the LM of the bundle"
        )
    raise Unavailable(
        f"vLLM at {client.url} refuses a first request with status {response.status_code}: {message or 'no reason'}"
    )


def _check_tokens(client: VllmClient, steerer: PersonaPrompt, model: str) -> None:
    """Tokenizer and template: the server must make of texts and chats exactly what the steerer was trained on."""
    lm = steerer.lm_
    if _tokens(client, {"model": model, "prompt": _TEXT, "add_special_tokens": False}) != lm.tokens(_TEXT):
        raise ValueError(
            f"vLLM at {client.url} makes other tokens of a text than {lm.name}: it has another tokenizer; start it "
            "with the LM of the bundle, without --tokenizer"
        )
    virtual = torch.zeros(2, lm.hidden_size)
    for chat in _CHATS:
        try:
            prompt = chat_prompt(lm, chat, steerer.placement_)
        except ValueError:
            continue  # a template that refuses such a chat here is never asked for it there
        _, body = reply_request(lm, prompt, virtual, 1, chat, steerer.placement_)
        if "messages" not in body:  # the whole prompt is sent, whatever the template there
            continue
        how = {name: body[name] for name in ("messages", "add_generation_prompt", "continue_final_message")}
        if not _is_around(prompt, len(virtual), _tokens(client, {"model": model, **how})):
            raise ValueError(
                f"vLLM at {client.url} writes a chat in other tokens than {lm.name} was trained on: it has another "
                "chat template, or puts other newlines between parts; start it without --chat-template and with "
                "--chat-template-content-format auto"
            )


def _tokens(client: VllmClient, body: dict[str, Any]) -> list[int] | None:
    response = client.ask("/tokenize", body)
    if response.status_code == 404:
        raise ValueError(
            f"{client.url} does not answer /tokenize, by which its tokens are compared; give the address of vLLM itself"
        )
    return (json_of(response) or {}).get("tokens")


def _is_around(prompt: Prompt, n: int, ids: list[int] | None) -> bool:
    """Whether these tokens are the prompt's with n of any kind in its slot."""
    before, after = list(prompt.before), list(prompt.after)
    return (
        ids is not None
        and len(ids) == len(before) + n + len(after)
        and ids[: len(before)] == before
        and ids[len(ids) - len(after) :] == after
    )
