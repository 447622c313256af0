"""Requests and replies of OpenAI's routes, as far as a small LM on one machine can keep their promises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from personae.serving.backend import Sampling
from personae.serving.schemas import Name, PersonaSpec, Request, Text

# Caps, checked before anything is tokenised
MESSAGES = 64
CHARACTERS = 32_000  # of all messages of a request, or of a prompt
TOKENS = 1_024  # of a reply
STOPS = 4


class TextPart(Request):
    type: Literal["text"]
    text: Annotated[Text, Field(max_length=CHARACTERS)]


class ChatMessage(Request):
    """One turn; images and sound are not understood."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, Field(max_length=CHARACTERS)] | Annotated[list[TextPart], Field(max_length=MESSAGES)]
    name: Annotated[Text, Field(max_length=64)] | None = Field(None, description="Ignored.")

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(Request):
    include_usage: bool = False


class _Generation(Request):
    """What chats and completions share. Parameters of OpenAI's that would do nothing here are refused, unless they are
    at the value at which they do nothing there, too."""

    model: Name = Field(description="Who speaks: any id of GET /v1/models, or a blend such as 0.7*cohort-0+0.3*r0007.")
    persona: Name | PersonaSpec | None = Field(None, description="Who speaks, instead of `model`.")
    max_tokens: int | None = Field(None, ge=1, le=TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest word; 0.7 by default.")
    top_p: float | None = Field(None, gt=0, le=1, description="0.9 by default.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same reply; another each time by default.")
    stop: (
        Annotated[Text, Field(min_length=1, max_length=100)]
        | Annotated[list[Annotated[Text, Field(min_length=1, max_length=100)]], Field(max_length=STOPS)]
        | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: Annotated[Text, Field(max_length=256)] | None = Field(None, description="Ignored.")

    def sampling(self, seed: int) -> Sampling:
        """``seed`` counts where the request has none."""
        return Sampling(
            max_tokens=self.max_tokens or 256,
            temperature=0.7 if self.temperature is None else self.temperature,
            top_p=0.9 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=TOKENS, description="The same as `max_tokens`.")
    logprobs: Literal[False] | None = None

    @model_validator(mode="after")
    def _short(self) -> ChatRequest:
        if sum(len(m.text) for m in self.messages) > CHARACTERS:
            raise ValueError(f"the messages have more than {CHARACTERS:,} characters together; leave out the oldest")
        if self.max_tokens is None:
            self.max_tokens = self.max_completion_tokens
        return self

    def turns(self) -> list[dict[str, str]]:
        """Messages as the LM's template takes them."""
        return [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in self.messages]


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: (
        Annotated[Text, Field(max_length=CHARACTERS)]
        | Annotated[list[Annotated[Text, Field(max_length=CHARACTERS)]], Field(min_length=1, max_length=1)]
    ) = Field(description="One text; token ids are not taken.")
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


# replies ---------------------------------------------------------------------------------------------------------
Finish = Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int = 0
    message: Said
    logprobs: None = None
    finish_reason: Finish


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Finish | None


class TextReply(BaseModel):
    """A completion, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """Somebody one may talk to."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "personae"
    kind: str = Field(description="everybody, cohort, trait group, fold-in, blend or respondent.")
    label: str = ""


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool = False
    last_id: str | None = Field(None, description="Give it as `after` for the next page.")
