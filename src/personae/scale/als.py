"""`fit_store`: the opinion model of answers that do not fit in memory, on one machine or many.

The same half-steps as in memory (`personae.people.als`). A sweep sends the questions' factors to the shards; each takes
its people's half-step, forgets the people, and returns the sums over them that the questions' half-step needs. So
memory holds the questions and a piece of one shard, whatever the number of people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from personae.data.survey import Survey
from personae.people.als import (
    Factorization,
    Side,
    Sums,
    alternate,
    condense,
    people_step,
    spectral_start,
    sums_over,
    weighted,
)
from personae.people.answers import Scale
from personae.people.choice import readout_of
from personae.people.opinion_model import OpinionModel
from personae.scale.engine import Engine, each_shard
from personae.scale.everybody import vectors_file
from personae.scale.store import AnswerStore, appearing

SAMPLE = 2_000_000  # answers that are held in memory
_PIECE = 16_384  # people at a time


def fit_store(
    store: AnswerStore,
    folder: str | Path,
    n_components: int | Literal["auto"] = "auto",
    random_state: int = 0,
    engine: Engine = "local",
    sample: int = SAMPLE,
    max_sweeps: int = 30,
    progress: Callable[[str, float], None] = lambda stage, value: None,
) -> OpinionModel:
    """Fit an `OpinionModel` to any number of people, and write everybody's vector.

    Parameters
    ----------
    store : AnswerStore
    folder : str or Path
        Must not exist; at the end it holds one Parquet file a shard, ``00000.vectors.parquet``: ``respondent``,
        ``vector`` (D float32), ``uncertainty``, the share of the prior variance that is left (`Persona.uncertainty`),
        and ``covariance`` (`personae.people.als.condense`). `Everybody` reads them by name.
    n_components, random_state
        As of `OpinionModel`.
    engine : "local" or "ray"
        See `each_shard`; both give the same bits.
    sample : int
        About so many answers, of random people, are held in memory: dimension, strength and confidence are chosen on
        them. The read-outs are fitted to them and, for questions that are rare among them, to as many answers again.
        Memory grows with it: 2 million answers of 16 dimensions take about 900 MB in all. 2,000 answers a question cost
        0.1 % of the held-out NLL of all answers (``docs/results``).
    max_sweeps : int
        Fewer sweeps than convergence takes leave the model less accurate.
    progress
        Called with ("sweep", mean noise variance) and ("vectors", shards written).

    Returns
    -------
    OpinionModel
        Question factors, priors and noise are those of all answers. Its people (`vectors_`, `survey_`) are the random
        ones, or everybody where the store has no more answers than ``sample``: then it is the model that
        ``OpinionModel.fit`` learns from ``store.survey()``, up to rounding.

    Raises
    ------
    SurveyError
        The folder exists.
    ValueError, ImportError
        As `OpinionModel.fit` and `each_shard`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from personae.data.sample import load_sample
    >>> survey, folder = load_sample(), pathlib.Path(tempfile.mkdtemp())
    >>> wide = survey.to_frame().reset_index()
    >>> wide.melt("respondent", var_name="question", value_name="answer").to_parquet(folder / "long.parquet")
    >>> store = AnswerStore.write(folder / "long.parquet", survey.questions, folder / "store")
    >>> people = fit_store(store, folder / "vectors", n_components=2)
    >>> me = people.fold_in({"natenvir": "too little", "natfare": "too little"})
    >>> pq.read_table(folder / "vectors").column_names
    ['respondent', 'vector', 'uncertainty', 'covariance']
    """
    with appearing(Path(folder)) as new:
        return _fit(store, new, OpinionModel(n_components, random_state), engine, sample, max_sweeps, progress)


def _fit(
    store: AnswerStore,
    folder: Path,
    model: OpinionModel,
    engine: Engine,
    sample: int,
    max_sweeps: int,
    progress: Callable[[str, float], None],
) -> OpinionModel:
    few = sampled(store, sample)
    d = model._choose(few)

    scale = Scale.of_counts(store.counts, store.n_options)
    scores = scale.scores().astype(np.float32)

    def product(block: np.ndarray) -> np.ndarray:
        parts = each_shard(engine, _product, store.shards, store, scores, block)
        return reduce(add, parts).astype(np.float32)

    def sweep(questions: Side, noise: np.ndarray, prior: np.ndarray) -> Sums:
        return reduce(add, each_shard(engine, _sums, store.shards, store, scores, *weighted(questions, noise), prior))

    start = spectral_start(product, len(store.questions), d, model.random_state)
    questions, noise, prior, sweeps = alternate(
        sweep, start, max_sweeps, progress=lambda noise: progress("sweep", noise)
    )

    def known(people: Side) -> Factorization:
        return Factorization(people, questions, noise, sweeps)

    nobody = known(Side(np.empty((0, d + 2), np.float32), np.empty((0, 0), np.float32), prior, constant=d + 1))
    count = np.maximum(store.counts.sum(1), 1)
    share = sample * np.maximum(1 / store.n_answers, 1 / (len(count) * count))  # of rare questions all the answers
    parts: list[_Finished] = []
    for part in each_shard(engine, _finish, store.shards, store, scores, nobody, share, folder):
        parts.append(part)
        progress("vectors", len(parts))
    typical = reduce(add, (part.covariance for part in parts)) / store.n_people
    mean, moment = np.concatenate([part.mean for part in parts]), np.concatenate([part.moment for part in parts])
    said = store.survey(share)  # the answers that were drawn, of the same people
    judged = known(Side(mean, moment, prior, constant=d + 1))
    readout = readout_of(judged, scale, said, model.strength_).tempered(model.confidence_, said)
    return model._learned(few, scale, known(nobody.fold_in(scale.answers(few))), readout, typical)


def sampled(store: AnswerStore, answers: int) -> Survey:
    """All answers of random people, about so many: those whom the opinion model of `fit_store` holds."""
    return store.survey(answers / store.n_answers)


# what runs on one shard ------------------------------------------------------------------------------------------
def pieces(shard: int, store: AnswerStore, scores: np.ndarray) -> Iterator[sp.csr_matrix]:
    """Standardised answers (n, Q) of a shard's people, so many at a time."""
    said = store.read(shard)
    value, start = scores[said.question, said.option], said.start.astype(np.int32)
    for first in range(0, len(start) - 1, _PIECE):
        rows = start[first : first + _PIECE + 1]
        cells = slice(rows[0], rows[-1])
        shape = (len(rows) - 1, len(store.questions))
        yield sp.csr_matrix((value[cells], said.question[cells], rows - rows[0]), shape=shape)


def _product(shard: int, store: AnswerStore, scores: np.ndarray, block: np.ndarray) -> np.ndarray:
    """A' A block, (Q, d)."""
    return reduce(add, ((a.T @ (a @ block)).astype(np.float64) for a in pieces(shard, store, scores)))


def _sums(
    shard: int, store: AnswerStore, scores: np.ndarray, mean: np.ndarray, moment: np.ndarray, prior: np.ndarray
) -> Sums:
    """People's half-step, and what the questions' half-step needs of it."""
    some = pieces(shard, store, scores)
    return reduce(add, (sums_over(a.T.tocsr(), people_step(a, mean, moment, prior)) for a in some))


class _Finished(NamedTuple):
    covariance: np.ndarray  # (D, D) sum over the shard's people
    mean: np.ndarray  # (m, R) of the people whose answers are drawn
    moment: np.ndarray  # (m, R (R + 1) / 2)


def _finish(
    shard: int, store: AnswerStore, scores: np.ndarray, model: Factorization, share: np.ndarray, folder: Path
) -> _Finished:
    """Write the shard's vectors."""
    kept, row = store.drawn(shard, share)
    drawn = np.bincount(row[kept], minlength=store.sizes[shard][0]) > 0
    covariance = np.zeros_like(model.people.prior)
    vectors, covariances, variance, mean, moment = [], [], [], [], []
    first = 0
    for answers in pieces(shard, store, scores):
        people = model.fold_in(answers)
        own = people.covariance()
        covariance += own.sum(0, dtype=np.float64)
        vectors.append(people.mean[:, :-1])
        covariances.append(condense(own, store.n_people))
        variance.append(own.trace(axis1=1, axis2=2))
        rows = np.flatnonzero(drawn[first : first + len(own)])
        mean.append(people.mean[rows])
        moment.append(people.moment[rows])
        first += len(own)
    vector, uncertainty = np.concatenate(vectors), np.concatenate(variance) / np.trace(model.people.prior)
    table = {
        "respondent": store.respondents(shard),
        "vector": _lists(vector),
        "uncertainty": np.clip(uncertainty, 0, 1).astype(np.float32),
        "covariance": _lists(np.concatenate(covariances).astype(np.float32, copy=False)),
    }
    # How many shards there are says in which of them somebody is.
    about = pa.table(table).replace_schema_metadata({"shards": str(len(store.sizes))})
    pq.write_table(about, vectors_file(folder, shard))
    return _Finished(covariance, np.concatenate(mean), np.concatenate(moment))


def _lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    """(n, m) as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])
