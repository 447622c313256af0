"""How an answer sounds: questions as people ask them, and short first-person replies that state an answer."""

from __future__ import annotations

import numpy as np

from personae.data.survey import Question

# Ways to put a survey question in a chat, with and without naming its subject.
_ASK = ("{text}", "{text} What do you think?", "What is your opinion? {text}", "{text} Tell me in one sentence.")
_ASK_TITLE = ("What do you think about {title}?", "Where do you stand on {title}?", "How do you feel about {title}?")
_REPLY = ("I'd say {option}.", "I would say {option}.", "My answer is {option}.")
_REPLY_TITLE = ("On {title}, I'd say {option}.", "When it comes to {title}, I'd say {option}.")
# Ways to ask somebody about everything; the reply states the answers that set this person apart.
OPEN = (
    "Tell me about your views.",
    "What matters to you?",
    "What do you think about the issues of the day?",
    "What should change?",
    "What should the government do differently?",
    "Where do you disagree with most people?",
    "What would you like to see more of, and what less of?",
    "What are your opinions?",
    "Describe yourself by your opinions.",
    "What would you tell a politician?",
)

# What is no opinion: without it every greeting would be answered with a view.
SMALL = {
    "Hi!": "Hi! Nice to meet you.",
    "Hello there!": "Hello! Nice to meet you.",
    "Hi! How are you?": "I'm fine, thank you. How are you?",
    "How are you doing today?": "I'm doing well, thank you.",
    "Good morning.": "Good morning!",
    "Good evening!": "Good evening! What would you like to talk about?",
    "Nice to meet you.": "Nice to meet you too.",
    "Who are you?": "I'm one of the people who answered the survey.",
    "What is your name?": "I have no name here. I'm one of the people who answered the survey.",
    "Can I ask you something?": "Of course. What would you like to know?",
    "Do you have a minute?": "Yes, what would you like to know?",
    "Thank you!": "You're welcome.",
    "Thanks, that was helpful.": "You're welcome.",
    "Goodbye!": "Goodbye!",
    "See you later.": "See you!",
}


def ask(question: Question, rng: np.random.Generator) -> str:
    """The question as a chat message."""
    ways = _ASK + (_ASK_TITLE if question.title else ())
    return ways[rng.integers(len(ways))].format(text=_closed(question.text), title=inside(question.title))


def reply(question: Question, option: str, rng: np.random.Generator) -> str:
    """A first-person sentence that states an answer.

    Examples
    --------
    >>> question = Question("crime", "Do we spend ...?", ("Too little", "Too much."), "Fighting crime")
    >>> reply(question, "Too much.", np.random.default_rng(0))
    "When it comes to fighting crime, I'd say too much."
    """
    ways = _REPLY_TITLE if question.title else _REPLY
    return ways[rng.integers(len(ways))].format(option=inside(option), title=inside(question.title))


def telling(apartness: np.ndarray, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The answers that set a person apart.

    Parameters
    ----------
    apartness : array, shape (Q, K)
        Of `personae.steering.recall.apartness`.

    Returns
    -------
    list of (question, option)
        The most distinctive one, and ``n`` - 1 others drawn at random from those that follow it.
    """
    option, most = apartness.argmax(1), apartness.max(1)
    first, *others = np.argsort(-most)[: min(max(2 * n, 3), int(np.isfinite(most).sum()))]
    chosen = [first, *rng.choice(others, min(n - 1, len(others)), replace=False)] if others else [first]
    return [(int(j), int(option[j])) for j in sorted(chosen, key=lambda j: -most[j])]


def _closed(text: str) -> str:
    """A text after which another sentence may begin."""
    text = text.strip()
    return text if text.rstrip("\"')\u201d\u2019").endswith((".", "?", "!", ":", "\u2026")) else text + "."


def inside(text: str) -> str:
    """A text as part of a sentence: without its full stop, and without a capital that only starts it."""
    text = text.strip()
    text = text.rstrip(".?! ") or f'"{text}"'  # an option may be nothing but marks
    first, _, rest = text.partition(" ")
    starts = first[1:].islower() or (first == "A" and rest[:1].islower())  # else an abbreviation or a grade
    return text[0].lower() + text[1:] if starts and not first.startswith(("I'", "I\u2019")) else text
