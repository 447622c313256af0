"""`LoRA`: the direct way. A copy of the LM is fine-tuned to answer or talk as whoever its prompt describes."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from personae.data.dialogues import Dialogues
from personae.data.survey import Question, Survey
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, letter_ids, letters_prompt
from personae.people.persona import Persona
from personae.steering.base import ChatRows, Steerer
from personae.steering.examples import lettered
from personae.steering.persona_prompt import check_lm
from personae.steering.text import Describe, TextPrompt, describe_by_traits, nothing
from personae.steering.text_replies import TextReplies
from personae.training.loop import Schedule, Task, train

if TYPE_CHECKING:
    from personae.people.opinion_model import OpinionModel

_RATE, _ALL_RATE = 1e-3, 5e-5  # learning rates of adapters, and of all weights
_ROWS, _PASS = 8, 4  # answers of a step, and of one pass: rows of similar length are padded less
_VALIDATION = 0.05  # share of the people who are held out to stop early
_VALIDATED = 128  # their answers that are read, each at the price of a whole pass


class LoRA(Steerer):
    """The fine-tuning baseline: low-rank adapters, trained on [who somebody is + question with options -> letter], or
    on the replies of dialogues.

    Parameters
    ----------
    lm : str or FrozenLM
        Stays as it is: what is fine-tuned is a copy, which takes its memory a second time.
    describe : callable, optional
        As for `TextPrompt`: from a persona and the question asked (None in a chat) to a text. By default the traits of
        the survey that `fit` is given.
    rank : int or None
        Of the adapters, which every linear projection of the attention gets; their scale alpha is twice the rank. None
        trains all weights, in float32.
    steps : int
        Training steps at most, of eight answers each.
    batches : int
        Of a training step, which several processes share (`accelerate launch`); more of them make a steadier step.
    random_state : int

    Attributes
    ----------
    lm_ : FrozenLM
        The fine-tuned copy.
    prompt_ : TextPrompt
        Asks it, every (description, question) in a prompt of its own.
    history_ : list of dict
        One a validation: step, loss, NLL and accuracy on held-out people.

    Notes
    -----
    A cohort, a blend or somebody folded in has no traits, so nothing is said of them and all of them get the answer of
    somebody unknown; the same holds for everybody where the survey has no traits. The description stands before the
    question, so that no two people share a computation: every (description, question) costs a whole pass.

    The adapters are those of PEFT (Hu et al. 2021, arXiv 2106.09685), an optional dependency:
    ``pip install 'personae[eval]'``.

    Examples
    --------
    The LM here is a tiny random one, so that the example runs in a moment.

    >>> from personae import LoRA, OpinionModel, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> steerer = LoRA(tiny_lm(), steps=2).fit(survey, people, progress=False)
    >>> steerer.describe_(people["r0001"], None)
    'Answer as this person. ...'
    >>> table = steerer.answer("Should the city build more bike lanes?", ["no", "yes"], people["r0001"])
    >>> table.columns.tolist(), table.sum(axis=1).round(3).tolist()
    (['no', 'yes'], [1.0])
    """

    method = "lora"

    def __init__(
        self,
        lm: str | FrozenLM = "smollm2-135m",
        describe: Describe | None = None,
        rank: int | None = 8,
        steps: int = 400,
        batches: int = 1,
        random_state: int = 0,
    ) -> None:
        self.lm = lm
        self.describe = describe
        self.rank = rank
        self.steps = steps
        self.batches = batches
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(
        self,
        data: Survey | Dialogues,
        people: OpinionModel | None = None,
        checkpoint: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> LoRA:
        """Train on a survey, or on dialogues.

        Parameters
        ----------
        people : OpinionModel
            Knows the people of a survey; of them the LM is told what ``describe`` says, no more. Dialogues need none:
            persona sentences are the system message.
        checkpoint : path, optional
            A file, replaced at intervals; ``resume`` goes on from it to the same result.

        Raises
        ------
        ImportError
            PEFT is not installed.
        """
        for name, value in (("steps", self.steps), ("batches", self.batches), ("rank", self.rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self._adapt()
        learned = nn.ParameterList(p for p in self.lm_.model.parameters() if p.requires_grad)
        task: Task
        rate = _ALL_RATE if self.rank is None else _RATE
        if isinstance(data, Dialogues):
            self._ask_by(self.describe or nothing)
            task = TextReplies(self.lm_, learned, data, rate, self.random_state)
        elif people is None:
            raise ValueError("a survey is learned with the opinion model of its people: fit(survey, people)")
        else:
            self._ask_by(self.describe or describe_by_traits(data))
            task = DescribedAnswers(self.lm_, learned, data, people, self.describe_, rate, self.random_state)
        schedule = Schedule(steps=self.steps, weight_decay=0.0, seed=self.random_state, batches=self.batches)
        path = None if checkpoint is None else Path(checkpoint)
        self.history_ = train(task, schedule, path, resume, progress)
        return self

    def _adapt(self) -> None:
        """Copy the LM, which other steerers share, and give the copy adapters that change nothing yet."""
        lm = self.lm if isinstance(self.lm, FrozenLM) else FrozenLM.load(self.lm)
        if lm.split or lm.quantised:
            raise ValueError(
                f"{lm.name} is {'split over devices' if lm.split else 'quantised'}, and its copy cannot be fine-tuned; "
                "load it whole and as it was trained, or train virtual tokens, which leave it as it is"
            )
        self.lm_ = copy.deepcopy(lm)
        self.lm_fingerprint_ = self.lm_.fingerprint  # of the LM as it was
        if self.rank is None:
            self.lm_.model.float().requires_grad_(True)  # a step is too small for bfloat16 to notice
            return
        peft = _peft()
        targets, transposed = _attention_projections(self.lm_)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=targets,
            fan_in_fan_out=transposed,
        )
        # PEFT's wrapper is kept for its parameters and files; the passes go through the LM, whose layers it replaced.
        self.adapted_ = peft.get_peft_model(self.lm_.model, config)
        self.adapted_.peft_config["default"].base_model_name_or_path = self.lm_.name

    def _ask_by(self, describe: Describe | None) -> None:
        self.describe_ = describe or _nobody_can_be_described
        self.prompt_ = TextPrompt(self.lm_, self.describe_).fit()

    # answering and talking -------------------------------------------------------------------------------------
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """See `Steerer`; every different (description, question) is computed once.

        It was trained on letters; how it reads options' texts is what the LM makes of that.
        """
        return self.prompt_.predict_proba(personas, questions, read)

    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`; the description is the chat's system message."""
        return self.prompt_.chat_rows(messages, personas)

    # files -----------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """PEFT's ``adapter_model.safetensors`` and ``adapter_config.json``, or all weights; and ``steerer.json``.

        Descriptions are people's data and are not among them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.rank is None:
            self.lm_.model.save_pretrained(folder)
        else:
            weights = _peft().get_peft_model_state_dict(self.adapted_, save_embedding_layers=False)
            save_file(
                {n: v.contiguous().cpu() for n, v in weights.items()},
                folder / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
            self.adapted_.peft_config["default"].save_pretrained(folder)
        about = {
            "method": self.method,
            "parameters": {
                "lm": self.lm_.name,
                "rank": self.rank,
                "steps": self.steps,
                "random_state": self.random_state,
            },
            "lm": self.lm_fingerprint_,
            "history": self.history_,
        }
        (folder / "steerer.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path | str, lm: str | FrozenLM | None = None, describe: Describe | None = None) -> LoRA:
        """Open what `save` wrote.

        Parameters
        ----------
        describe : callable, optional
            The one it was trained with, ``describe_by_traits(survey)`` by default of `fit`; without it asking raises
            ``ValueError``.

        Raises
        ------
        ValueError
            The LM is not the one it was trained with.
        """
        folder = Path(folder)
        about: dict[str, Any] = json.loads((folder / "steerer.json").read_text())
        self = cls(**{**about["parameters"], **({} if lm is None else {"lm": lm})}, describe=describe)
        with torch.random.fork_rng(devices=[]):  # adapters start at random and are then replaced
            self._adapt()
        check_lm(self.lm_, about["lm"], folder)
        if self.rank is None:
            load_model(self.lm_.model, folder / "model.safetensors", strict=False)  # tied weights stand there once
            self.lm_.model.requires_grad_(False)
        else:
            weights = load_file(folder / "adapter_model.safetensors")
            _peft().set_peft_model_state_dict(self.adapted_, weights)
        self._ask_by(describe)
        self.history_ = about["history"]
        return self


class DescribedAnswers:
    """The training task of `LoRA` (a `personae.training.loop.Task`): letters, each in a prompt of its own.

    Parameters
    ----------
    network : nn.ParameterList
        What learns, adapters or all weights; the rest of the LM has no gradient and is in no checkpoint.
    rate : float
        Learning rate.
    """

    network: nn.Module
    counts = "answers"

    def __init__(
        self,
        lm: FrozenLM,
        network: nn.ParameterList,
        survey: Survey,
        people: OpinionModel,
        describe: Describe,
        rate: float,
        seed: int,
    ) -> None:
        self.lm, self.network, self.rate, self.seed = lm, network, rate, seed
        self.survey, self.people, self.describe = survey, people, describe
        rng = np.random.default_rng(seed)
        asked = lettered(survey)[survey.question]  # answers
        order = rng.permutation(np.unique(survey.respondent[asked]))
        if len(order) < 2:
            raise ValueError("fine-tuning needs at least two people who answered")
        held_out = np.isin(survey.respondent, order[: max(1, min(100, round(_VALIDATION * len(order))))])
        self.trained = np.flatnonzero(~held_out & asked)
        self.held_out = rng.permutation(np.flatnonzero(held_out & asked))[:_VALIDATED]

    # the Task interface ----------------------------------------------------------------------------------------
    def groups(self) -> list[dict[str, Any]]:
        """All alike."""
        return [{"params": list(self.network.parameters()), "lr": self.rate}]

    def identity(self) -> dict[str, Any]:
        """What must be the same to resume."""
        some = "\0".join(about for _, about in self._described(self.held_out))  # all would take a while
        return {
            "survey": self.survey.fingerprint,
            "descriptions": hashlib.sha256(some.encode()).hexdigest(),
            "lm": self.lm.fingerprint,
            "rate": self.rate,
            "weights": [list(p.shape) for p in self.network.parameters()],
        }

    def losses(self, step: int, batch: int = 0) -> Iterator[tuple[Tensor, int]]:
        """Mean cross-entropy of the step's answers over the letters of each question's options."""
        answers = np.random.default_rng([self.seed, step, batch]).choice(self.trained, _ROWS)
        for logits, y in self._passes(answers, _PASS):
            yield nn.functional.cross_entropy(logits, y, reduction="sum") / _ROWS, len(y)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and accuracy of answers of people held out from this training."""
        nll, right, count = 0.0, 0, len(self.held_out)
        for logits, y in self._passes(self.held_out, 4 * _PASS):
            nll += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += int((logits.argmax(1) == y).sum())
        return {"nll": nll / count, "accuracy": right / count}

    def _passes(self, answers: np.ndarray, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (R, K) of option letters, -inf beyond a question's own, and the options given (R,); shortest first."""
        described = self._described(answers)
        prompts = [letters_prompt(self.lm, q.text, q.options, "before", about).text_ids for q, about in described]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), rows):
            some = order[start : start + rows]
            n_options = torch.tensor([len(described[i][0].options) for i in some], device=self.lm.device)
            letters = torch.tensor(letter_ids(self.lm, int(n_options.max())), device=self.lm.device)
            logits = self.lm.logits(_last_hidden(self.lm, [prompts[i] for i in some]), letters)
            beyond = torch.arange(len(letters), device=self.lm.device) >= n_options[:, None]
            given = torch.as_tensor(self.survey.option[answers[some]].astype(np.int64), device=self.lm.device)
            yield logits.masked_fill(beyond, float("-inf")), given

    def _described(self, answers: np.ndarray) -> list[tuple[Question, str]]:
        """Each answer's question, and what is said of who gave it."""
        names = self.survey.respondent_ids[self.survey.respondent[answers]]
        asked = [self.survey.questions[j] for j in self.survey.question[answers]]
        return [(q, self.describe(self.people[name], q)) for name, q in zip(names, asked, strict=True)]


def _last_hidden(lm: FrozenLM, ids: Sequence[Sequence[int]]) -> Tensor:
    """Hidden state (R, H) that predicts what follows each row; right padding is never looked at by a causal LM."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=lm.device)  # (R, T)
    out = lm.model.base_model(input_ids=padded, attention_mask=torch.ones_like(padded), use_cache=False)
    ends = torch.tensor([len(row) - 1 for row in ids], device=lm.device)
    return out.last_hidden_state[torch.arange(len(ids), device=lm.device), ends]


def _attention_projections(lm: FrozenLM) -> tuple[list[str], bool]:
    """How the linear projections of attention are called in this LM, e.g. ``self_attn.q_proj``, and whether their
    weights are transposed, as GPT-2's are."""
    found = {
        ".".join(name.split(".")[-2:]): isinstance(module, Conv1D)
        for name, module in lm.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"att(n|ention)\w*\.\w+$", name)
    }
    if not found:
        raise ValueError(f"{lm.name} has no linear projections in modules called attention; LoRA cannot adapt it")
    return sorted(found), any(found.values())


def _nobody_can_be_described(persona: Persona, question: Question | None) -> str:
    raise ValueError(
        "descriptions are not saved with the adapters; open them with the one they were trained with: "
        "LoRA.load(folder, describe=describe_by_traits(survey))"
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("fine-tuning needs PEFT; install it with: pip install 'personae[eval]'") from error
    return peft
