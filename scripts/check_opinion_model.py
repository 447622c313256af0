"""Print the figures of the opinion model: likelihood and accuracy on a survey, RMSE on ratings, speed.

python scripts/check_opinion_model.py --responses responses.csv.gz --questions questions.csv
python scripts/check_opinion_model.py --ratings ml-100k.inter
python scripts/check_opinion_model.py --speed
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from personae.data.survey import Question, Survey
from personae.people.bench import bench
from personae.people.opinion_model import OpinionModel
from personae.people.paper_factorization import PaperFactorization


def check_survey(survey: Survey, seeds: range = range(3)) -> None:
    """A fifth of the answers of seen people, and of people left out of the fit, is predicted."""
    print(survey)
    print("seed  people  method          accuracy    nll  seconds  dimension")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        held_out = rng.random(survey.n_answers) < 0.2
        train, test = survey.keep_answers(~held_out), survey.keep_answers(held_out)
        marginal = train.option_counts() + (np.arange(survey.n_options.max()) < survey.n_options[:, None])
        _row(seed, "seen", "majority", marginal[test.question] / marginal.sum(1)[test.question, None], test, 0, 0)
        for name, model in (("paper", PaperFactorization()), ("opinion model", OpinionModel())):
            begin = time.perf_counter()
            model.fit(train)
            seconds = time.perf_counter() - begin
            p = model.predict_proba_pairs(test.respondent, test.question)
            _row(seed, "seen", name, p, test, seconds, model.vectors_.shape[1])
        ids = rng.permutation(survey.respondent_ids)
        fitted, new = survey.select(ids[: int(0.8 * len(ids))]), survey.select(ids[int(0.8 * len(ids)) :])
        people = OpinionModel().fit(fitted)
        rank = _random_rank(new, rng)
        held_out = rng.random(new.n_answers) < 0.2
        test = new.keep_answers(held_out)
        personas = people.fold_in(new.keep_answers(~held_out))
        p = people.predict_proba_pairs(test.respondent, test.question, personas)
        _row(seed, "unseen", "from 80 %", p, test, 0, people.vectors_.shape[1])
        test = new.keep_answers(rank >= 50)
        for given in (0, 1, 2, 5, 10, 20, 50):
            personas = people.fold_in(new.keep_answers(rank < given))
            p = people.predict_proba_pairs(test.respondent, test.question, personas)
            _row(seed, "unseen", f"from {given}", p, test, 0, people.vectors_.shape[1])


def check_ratings(survey: Survey, folds: int = 5) -> None:
    """Root mean squared error of ratings, folds of a random partition; all choices are made inside the other folds."""
    print(survey)
    fold = np.random.default_rng(0).integers(0, folds, survey.n_answers)
    errors = []
    for k in range(folds):
        test = survey.keep_answers(fold == k)
        begin = time.perf_counter()
        people = OpinionModel().fit(survey.keep_answers(fold != k))
        seconds = time.perf_counter() - begin
        miss = people.predict_value_pairs(test.respondent, test.question) - test.option
        errors.append(float(np.sqrt(np.mean(miss**2))))
        print(f"fold {k}: RMSE {errors[-1]:.4f}, dimension {people.n_components_}, {seconds:.1f} s")
    print(f"mean RMSE {np.mean(errors):.4f}")


def read_ratings(path: str) -> Survey:
    """A tab-separated file with columns user_id, item_id and rating (1 to 5), types after a colon in the header."""
    table = pd.read_csv(path, sep="\t").rename(columns=lambda name: name.split(":")[0])
    person, people = pd.factorize(table.user_id)
    item, items = pd.factorize(table.item_id)
    questions = [Question(str(i), f"How do you rate {i}?", tuple("12345")) for i in items]
    return Survey(questions, [str(i) for i in people], person, item, table.rating.astype(int) - 1)


def _random_rank(survey: Survey, rng: np.random.Generator) -> np.ndarray:
    """Place of each answer in a random order of its person's answers."""
    order = np.lexsort((rng.random(survey.n_answers), survey.respondent))
    rank = np.empty(survey.n_answers, np.int64)
    first = np.searchsorted(survey.respondent, np.arange(survey.n_respondents))
    rank[order] = np.arange(survey.n_answers) - first[survey.respondent[order]]
    return rank


def _row(seed: int, people: str, name: str, p: np.ndarray, test: Survey, seconds: float, size: int) -> None:
    accuracy = (p.argmax(1) == test.option).mean()
    nll = -np.log(np.maximum(p[np.arange(len(p)), test.option], 1e-12)).mean()
    print(f"{seed:4}  {people:6}  {name:14}  {accuracy:8.2%}  {nll:.4f}  {seconds:7.1f}  {size:9}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses")
    parser.add_argument("--questions")
    parser.add_argument("--ratings")
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args()
    if given.responses:
        from personae.data.read import read_survey

        check_survey(read_survey(given.responses, questions=given.questions))
    if given.ratings:
        check_ratings(read_ratings(given.ratings))
    if given.speed:
        print(bench())


if __name__ == "__main__":
    main()
