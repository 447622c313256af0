"""What the server takes and gives of its own, with every cap; those of OpenAI's routes are in `openai_schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Caps, checked before anything is tokenised or computed
NAME = 256  # characters of a persona's or question's name
TEXT = 4_000  # characters of a question or of one option
OPTIONS = 26  # letters reach no further
ANSWERS = 2_000  # answers of a new person
PARTS = 16  # personas of a blend
PERSONAS = 10_000  # of one call
QUESTIONS = 2_000  # of one call
CELLS = 200_000  # personas x questions of one call
PAGE = 1_000  # rows of one page of a list


def _plain_text(text: str) -> str:
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("this text holds a zero character or half a surrogate pair, which is no text")
    return text


Text = Annotated[str, AfterValidator(_plain_text)]
Name = Annotated[Text, Field(min_length=1, max_length=NAME)]
Label = Annotated[Text, Field(min_length=1, max_length=TEXT)]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
AnswersGiven = Annotated[dict[Name, Label], Field(max_length=ANSWERS)]


class Request(BaseModel):
    """Nothing unknown is accepted, and no number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# who -------------------------------------------------------------------------------------------------------------
class PersonaSpec(Request):
    """Who is to speak: exactly one of `name`, `answers` and `blend`."""

    name: Name | None = Field(None, description="A cohort, respondent, trait group, blend or persona made here.")
    answers: AnswersGiven | None = Field(
        None, description="Somebody new: question id to option, as in GET /v1/questions.", min_length=1
    )
    blend: dict[Name, Weight] | None = Field(
        None, description="Names and their weights, which are normalised.", min_length=1, max_length=PARTS
    )
    label: Annotated[Text, Field(max_length=NAME)] = Field("", description="What to call them in the reply.")

    @model_validator(mode="after")
    def _one(self) -> PersonaSpec:
        if sum(given is not None for given in (self.name, self.answers, self.blend)) != 1:
            raise ValueError('a persona is given by exactly one of "name", "answers" and "blend"')
        return self


Who = Name | PersonaSpec


class NewPersona(Request):
    """Somebody to remember: exactly one of `answers` and `blend`. The answers themselves are not kept."""

    answers: AnswersGiven | None = Field(None, min_length=1)
    blend: dict[Name, Weight] | None = Field(None, min_length=1, max_length=PARTS)
    label: Annotated[Text, Field(max_length=NAME)] = ""

    @model_validator(mode="after")
    def _one(self) -> NewPersona:
        if (self.answers is None) == (self.blend is None):
            raise ValueError('a new persona is given by exactly one of "answers" and "blend"')
        return self


class Place(BaseModel):
    """Where somebody is on the map, and how certain that is."""

    x: float
    y: float
    covariance: list[list[float]] = Field(description="2 x 2, in the units of the map.")


class PersonaCard(BaseModel):
    """What may be known of a persona. No vector, no answers."""

    id: str
    object: Literal["persona"] = "persona"
    kind: str = Field(description="respondent, cohort, trait group, everybody, blend or fold-in.")
    label: str
    uncertainty: float = Field(description="Share of the prior variance that is left, 0 to 1.")
    people: int | None = Field(description="Of whom it is the centre; null where there are none, or too few to show.")
    cohort: str | None = Field(description="The nearest cohort.")
    place: Place | None
    created: int | None = Field(None, description="Unix time, of one made here.")
    note: str = Field(description="What is, and is not, to be read into what they say.")


class PersonaPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[PersonaCard]
    has_more: bool
    last_id: str | None = Field(description="Give it as `after` for the next page.")


class Deleted(BaseModel):
    id: str
    object: Literal["persona"] = "persona"
    deleted: Literal[True] = True


class Page(Request):
    """Which part of a list."""

    limit: int = Field(100, ge=1, le=PAGE)
    after: Name | None = Field(None, description="The `last_id` of the page before.")


# what they answer ------------------------------------------------------------------------------------------------
class QuestionSpec(Request):
    """A question of any wording."""

    id: Name | None = Field(None, description="What to call it in the reply; the text by default.")
    text: Label
    options: list[Label] = Field(min_length=2, max_length=OPTIONS, description="All different, in scale order.")

    @model_validator(mode="after")
    def _different(self) -> QuestionSpec:
        if len(set(self.options)) < len(self.options) or not all(o.strip() for o in [self.text, *self.options]):
            raise ValueError("a question has a text and different options, none of them empty")
        return self


class AnswersRequest(Request):
    """Personas x questions."""

    personas: list[Who] = Field(min_length=1, max_length=PERSONAS)
    questions: list[Name | QuestionSpec] = Field(
        min_length=1, max_length=QUESTIONS, description="Ids of GET /v1/questions, or new questions."
    )
    by: Literal["lm", "opinion model"] | None = Field(
        None,
        description="Who computes: the steered language model (the default where there is one), or the opinion model, "
        "which knows the survey's own questions only and is much faster.",
    )
    read: Literal["letters", "text"] = Field(
        "letters", description="The language model is read by option letter, or by the options' full text."
    )

    @model_validator(mode="after")
    def _few(self) -> AnswersRequest:
        if len(self.personas) * len(self.questions) > CELLS:
            raise ValueError(f"personas x questions are at most {CELLS:,} in one call; ask in several")
        return self


class AnswerLine(BaseModel):
    """One line of the reply: the options' probabilities of one persona and question. A prediction of a model."""

    persona: str
    persona_index: int
    question: str
    question_index: int
    by: str
    probabilities: dict[str, float]


# the survey ------------------------------------------------------------------------------------------------------
class About(BaseModel):
    """What there is to meet."""

    name: str = Field(description="Of the bundle.")
    people: int
    questions: int
    language_model: bool = Field(description="Whether anybody can talk; without, only the opinion model answers.")
    minimum: int = Field(description="Cells of fewer people are not shown.")


class KnownQuestion(BaseModel):
    id: str
    text: str
    options: list[str]
    title: str
    topic: str
    population: list[float | None] = Field(description="Everybody's observed shares, as the options; null: too few.")


class Questions(BaseModel):
    object: Literal["list"] = "list"
    data: list[KnownQuestion]


class Cell(BaseModel):
    """A share of a cohort with its 95 % interval, beside everybody's; null where too few people are behind it."""

    name: str = Field(description="The question's id, or the trait.")
    value: str = Field(description="The option, or the trait's value.")
    count: int | None
    n: int | None = Field(description="Members who answered, or whose trait is known.")
    share: float | None
    low: float | None
    high: float | None
    population: float | None


class CohortCard(BaseModel):
    """A cohort: what sets it apart, from what people really answered."""

    id: str
    object: Literal["cohort"] = "cohort"
    label: str
    people: int | None = Field(description="Null where they are too few to show.")
    distance: float | None = Field(description="Of the members from the centre, on average.")
    uncertainty: float
    place: Place | None
    answers: list[Cell] = Field(description="The most telling ones; all of them for one cohort.")
    traits: list[Cell] = Field(description="Those that stand out; all of them for one cohort.")


class Cohorts(BaseModel):
    object: Literal["list"] = "list"
    data: list[CohortCard]
    people: int = Field(description="Of the survey.")
    minimum: int = Field(description="Cells of fewer people are not shown.")


class MapPeople(BaseModel):
    """Columns, one entry a person. No traits: what somebody said of themselves is an answer, too, and not served."""

    id: list[str]
    x: list[float]
    y: list[float]
    cohort: list[int | None] = Field(description="Number of the cohort; null where it is too small to show.")
    uncertainty: list[float]


class MapGroup(BaseModel):
    id: str
    label: str
    x: float
    y: float
    people: int


class MapAxis(BaseModel):
    share: float = Field(description="Of the differences between people's predicted answers.")
    question: str = Field(description="The one that the axis follows most.")
    towards: str = Field(description="Its option to the right, or upwards.")


class Map(BaseModel):
    """People and groups on the plane that shows most of their differences."""

    people: MapPeople
    of: int = Field(description="People of the survey; of many, a sample is drawn.")
    cohorts: list[MapGroup]
    traits: list[MapGroup]
    axes: list[MapAxis]


class NextQuestionRequest(Request):
    """What somebody answered so far."""

    answers: Annotated[dict[Name, Label], Field(max_length=ANSWERS)] = Field(default_factory=dict)
    among: list[Name] | None = Field(None, max_length=QUESTIONS, description="Ask one of these; any where null.")


class NextQuestion(BaseModel):
    """What to ask next, and where the answers so far put somebody."""

    question: KnownQuestion | None = Field(description="Null when everything is answered.")
    uncertainty_after: float | None = Field(description="What will be left of the uncertainty once it is answered.")
    persona: PersonaCard


class Health(BaseModel):
    status: Literal["ok", "failing"]


def plain_number(value: Any) -> float | None:
    """A number of a table for JSON, which has no NaN."""
    return None if value != value else round(float(value), 6)
