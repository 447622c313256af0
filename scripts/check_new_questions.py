"""Cross-validation over questions: what the texts of left-out questions tell of the answers to them.

python scripts/check_new_questions.py SURVEY [--folds 10] [--seeds 1] [--no-network] [--all-questions]

"By likeness" is `NewQuestions`, from the LM's or MiniLM's representation; "network" is the trunk alone, as before it.

Of GSS 2018 the questions that its evaluation keeps for itself (`make_plan`, seed 0) are never looked at, so that
methods may be chosen by this table; a survey of few questions is taken whole with ``--all-questions``.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch

from personae.data.read import read_survey
from personae.data.survey import Survey
from personae.evaluation.fitted import Fitted
from personae.evaluation.plan import make_plan
from personae.people.new_questions import NewQuestions
from personae.people.opinion_model import OpinionModel
from personae.people.text_opinion_model import TextOpinionModel, sharpness

_SURE = 0.05  # share of the questions that tell how sure a network is to be


def by_likeness(people: OpinionModel, h: np.ndarray, known: Survey, new: np.ndarray, n: list[int]) -> np.ndarray:
    """Logits (C, N, K) of new questions' embeddings (C, F)."""
    columns, readout = people.question_index(known.question_ids), people._readout
    a, w = (torch.as_tensor(x[columns]) for x in (readout.intercepts, readout.weights))
    vectors = torch.as_tensor(people.vectors_).float()
    model = NewQuestions(torch.as_tensor(h), known.n_options.tolist(), a, w, vectors)
    return model(vectors, torch.as_tensor(new), n).numpy()


def by_network(people: OpinionModel, h: np.ndarray, known: Survey, new: np.ndarray, n: list[int]) -> np.ndarray:
    """The same of a network, made as sure as it should have been of a twentieth of the questions, if that is two."""
    order = np.random.default_rng(0).permutation(known.n_questions)
    judge = np.sort(order[: round(_SURE * known.n_questions)])
    judge = judge if len(judge) > 1 else judge[:0]
    learned = np.setdiff1d(order, judge)
    ids = known.question_ids.to_numpy()
    model = TextOpinionModel().fit(known.select(questions=ids[learned]), people, h[learned])

    def logits(x: np.ndarray, options: list[int]) -> np.ndarray:
        p = model.predict_proba(people.vectors_, x, options, known=True).transpose(1, 0, 2)
        return np.log(np.maximum(p, 1e-12)) + np.where(p > 0, 0, -np.inf)

    found = logits(new, n)
    if not len(judge):
        return found
    k = known.n_options[judge].tolist()
    said = people.predict_proba(people.vectors_, ids[judge]).transpose(1, 0, 2)[..., : max(k)]
    return found * sharpness(logits(h[judge], k), said)


def losses(logits: np.ndarray, survey: Survey, columns: np.ndarray) -> pd.DataFrame:
    """Answers, right ones and -log probability of each question."""
    log_p = torch.as_tensor(logits).log_softmax(-1).numpy()  # (C, N, K)
    rows = []
    for c, j in enumerate(columns):
        mine = survey.question == j
        who, option = survey.respondent[mine], survey.option[mine]
        best = log_p[c, who].argmax(-1)
        rows.append((len(who), int((best == option).sum()), -float(log_p[c, who, option].sum())))
    return pd.DataFrame(rows, index=columns, columns=["n", "right", "nll"])


def describe(name: str, found: pd.DataFrame, baseline: pd.DataFrame) -> str:
    """Means over answers, and the difference to a baseline with its standard error over questions."""
    n = found.n.sum()
    gap = {what: found[what] - baseline[what] for what in ("right", "nll")}
    se = {what: float(np.sqrt(((g - found.n * g.sum() / n) ** 2).sum()) / n) for what, g in gap.items()}
    mean = {what: float(g.sum() / n) for what, g in gap.items()}
    return (
        f"{name:34s} {100 * found.right.sum() / n:6.2f} % {found.nll.sum() / n:7.4f}"
        f"   {100 * mean['right']:+6.2f} ± {100 * se['right']:4.2f}  {mean['nll']:+7.4f} ± {se['nll']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("survey")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no-network", action="store_true")
    parser.add_argument("--all-questions", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = make_plan(read_survey(given.survey), answers=0.2, questions=0.0 if given.all_questions else 0.1, seed=0)
    survey, fitted = plan.train, Fitted(plan)
    texts = {"LM": fitted.lm_embeddings(survey.questions), "MiniLM": fitted.minilm_embeddings(survey.questions)}
    texts["both"] = np.concatenate([x / x.std(0).clip(1e-6) / x.shape[1] ** 0.5 for x in texts.values()], 1)
    ids, found = survey.question_ids.to_numpy(), {}
    for seed in range(given.seeds):
        order = np.random.default_rng(seed).permutation(len(ids))
        for out in (np.sort(order[fold :: given.folds]) for fold in range(given.folds)):
            kept = np.setdiff1d(np.arange(len(ids)), out)
            known, n = survey.select(questions=ids[kept]), survey.n_options[out].tolist()
            people = OpinionModel(random_state=seed).fit(known)
            open_ = np.where(np.arange(max(n)) < np.array(n)[:, None], 0.0, -np.inf)[:, None]
            shape = (len(out), len(people), max(n))
            share = np.log(survey.option_counts()[out][:, : max(n)] + 0.5)[:, None] + open_
            logits = {
                "every option alike": np.broadcast_to(open_, shape),
                "their own shares (a ceiling)": np.broadcast_to(share, shape),
            }
            for name, h in texts.items():
                logits[f"by likeness, {name}"] = by_likeness(people, h[kept], known, h[out], n)
            if not given.no_network:
                logits["network, LM"] = by_network(people, texts["LM"][kept], known, texts["LM"][out], n)
                logits["mean of network and likeness, LM"] = (logits["by likeness, LM"] + logits["network, LM"]) / 2
            mean = torch.as_tensor(logits["by likeness, LM"]).softmax(-1).mean(1, keepdim=True).log().numpy()
            logits["by likeness, LM: same for everybody"] = np.broadcast_to(mean, shape)
            with np.errstate(invalid="ignore"):
                person = logits["by likeness, LM"] - mean + share
            logits["by likeness, LM, on their own shares"] = np.where(np.isfinite(person), person, -np.inf)
            for name, x in logits.items():
                found.setdefault(name, []).append(losses(np.ascontiguousarray(x, np.float32), survey, out))
    tables = {name: pd.concat(parts).groupby(level=0).mean() for name, parts in found.items()}
    baseline = "every option alike" if given.no_network else "network, LM"
    print(f"{survey.n_questions} questions, {given.folds} folds, {given.seeds} seeds; differences to: {baseline}")
    for name, table in tables.items():
        print(describe(name, table, tables[baseline]))


if __name__ == "__main__":
    main()
