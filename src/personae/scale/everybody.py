"""`Everybody`: the vectors of people too many for memory, as `fit_store` wrote them, by name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from personae.data.account import SurveyError
from personae.people.als import expand
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona
from personae.scale.store import shard_of

_OPEN = 2  # shards in memory: that of the last person asked for, and one more


class _Shard(NamedTuple):
    names: pd.Index
    vectors: np.ndarray  # (n, D)
    covariances: np.ndarray  # (n, D (D + 1) / 2) or (n, D), see `personae.people.als.condense`


class Everybody:
    """People by name; memory holds the shards that were used last.

    Parameters
    ----------
    folder : str or Path
        What `fit_store` wrote.
    people : OpinionModel
        What it returned: what the vectors mean.

    Raises
    ------
    SurveyError
        The folder is none of `fit_store`, or of another opinion model.

    Examples
    --------
    >>> import tempfile
    >>> from personae.data.sample import load_sample
    >>> from personae.scale.als import fit_store
    >>> from personae.scale.store import AnswerStore
    >>> survey, folder = load_sample(), Path(tempfile.mkdtemp())
    >>> wide = survey.to_frame().reset_index()
    >>> wide.melt("respondent", var_name="question", value_name="answer").to_parquet(folder / "long.parquet")
    >>> store = AnswerStore.write(folder / "long.parquet", survey.questions, folder / "store")
    >>> people = fit_store(store, folder / "vectors", n_components=2, sample=5000)
    >>> everybody = Everybody(folder / "vectors", people)
    >>> len(people) < len(everybody)
    True
    >>> everybody["r0007"].name
    'r0007'
    """

    def __init__(self, folder: str | Path, people: OpinionModel) -> None:
        self.folder = Path(folder)
        files = sorted(self.folder.glob("*.vectors.parquet"))
        if not files:
            raise SurveyError(f"there are no vectors in {folder}; fit_store writes them")
        about = [pq.read_metadata(file) for file in files]
        self._sizes = {int(f.name.split(".")[0]): m.num_rows for f, m in zip(files, about, strict=True)}
        self._n_shards = int((about[0].metadata or {}).get(b"shards", 0))
        self._prior_variance = float(np.trace(people.prior_covariance_))
        self._shard = lru_cache(_OPEN)(self._read)
        if self._n_shards < len(files) or self._shard(next(iter(self._sizes))).vectors.shape[1:] != (
            people.vectors_.shape[1],
        ):
            raise SurveyError(f"the vectors in {folder} are not of this opinion model; fit again")

    def __len__(self) -> int:
        return sum(self._sizes.values())

    def __repr__(self) -> str:
        return f"Everybody({len(self):,} people, {len(self._sizes):,} shards)"

    def __contains__(self, name: object) -> bool:
        return self._place(str(name)) is not None

    def __getitem__(self, name: str) -> Persona:
        """The persona of a respondent; an unknown one raises ``SurveyError``."""
        if (place := self._place(name)) is None:
            raise SurveyError(f'there is no respondent "{name}" among these {len(self):,} people')
        (_, vectors, covariances), row = place
        covariance = expand(covariances[[row]], vectors.shape[1])[0]
        origin = {"kind": "respondent", "respondent": name}
        return Persona(name, vectors[row], covariance, self._prior_variance, origin)

    def names(self, rows: slice | np.ndarray) -> list[str]:
        """Names of the given rows, which ascend; people stand shard by shard."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        found: list[str] = []
        first = 0
        for shard, size in self._sizes.items():
            begin, end = np.searchsorted(wanted, [first, first + size])
            if end > begin:
                column = pq.read_table(vectors_file(self.folder, shard), columns=["respondent"]).column(0)
                found += column.take(wanted[begin:end] - first).to_pylist()
            first += size
        return found

    def _place(self, name: str) -> tuple[_Shard, int] | None:
        """The shard and row of a name; which shard that is, the name alone says."""
        shard = int(shard_of(np.array([name], dtype=object), self._n_shards)[0])
        if shard not in self._sizes:
            return None
        held = self._shard(shard)
        row = int(held.names.get_indexer(pd.Index([name], dtype=object))[0])
        return (held, row) if row >= 0 else None

    def _read(self, shard: int) -> _Shard:
        table = pq.read_table(vectors_file(self.folder, shard), columns=["respondent", "vector", "covariance"])
        names = pd.Index(table.column("respondent").to_numpy(), dtype=object)
        vectors, covariances = (
            table.column(name).combine_chunks().flatten().to_numpy().reshape(len(names), -1)
            for name in ("vector", "covariance")
        )
        return _Shard(names, vectors, covariances)


def vectors_file(folder: Path, shard: int) -> Path:
    """Where `fit_store` writes a shard's vectors."""
    return folder / f"{shard:05d}.vectors.parquet"
