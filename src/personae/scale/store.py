"""`AnswerStore`: the answers of any number of people on disk, in shards of whole people."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from personae.data.account import Account, SurveyError
from personae.data.build import tell_silent
from personae.data.codebook import Entry, read_questions
from personae.data.long import LONG_COLUMNS
from personae.data.survey import Question, Survey

_FORMAT = 1
_BATCH = 1 << 18  # rows that are read at a time
_INCOMING = pa.schema([("respondent", pa.string()), ("question", pa.int32()), ("option", pa.int16())])


class Shard(NamedTuple):
    """Answers of some people, sorted by person and then question; those of person i are ``start[i]:start[i + 1]``."""

    start: np.ndarray  # (n + 1,) int64
    question: np.ndarray  # (n_answers,) int32
    option: np.ndarray  # (n_answers,) int16


@dataclass(frozen=True)
class AnswerStore:
    """Answers too many for memory: long tables, checked once, as shards of whole people that are quick to read again.

    Who is in which shard depends on the respondent's id and the number of shards alone, so the rows of the long tables
    may come in any order.

    Attributes
    ----------
    folder : Path
        ``store.json``, ``questions.parquet`` and two Parquet files a shard.
    questions : tuple of Question
    counts : int array, shape (Q, K)
        How often each option was given, zero beyond a question's options.
    sizes : tuple of (int, int)
        People and answers of each shard.
    account : dict
        What was skipped and why, as `Account.as_dict` has it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> long = pd.DataFrame({"respondent": ["ann", "bob", "ann"], "question": ["tea", "tea", "dog"],
    ...                      "answer": ["no", "yes", "yes"]})
    >>> long.to_parquet(folder / "long.parquet")
    >>> asked = [Question("tea", "Tea?", ("yes", "no")), Question("dog", "A dog?", ("yes", "no"))]
    >>> store = AnswerStore.write(folder / "long.parquet", asked, folder / "store")
    >>> store
    AnswerStore(2 people x 2 questions, 3 answers, 1 shards)
    >>> store.survey().answers_of("ann")
    {'tea': 'no', 'dog': 'yes'}
    """

    folder: Path
    questions: tuple[Question, ...]
    counts: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    account: dict

    @property
    def n_people(self) -> int:
        return sum(n for n, _ in self.sizes)

    @property
    def n_answers(self) -> int:
        return sum(n for _, n in self.sizes)

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that hold anybody."""
        return [shard for shard, (people, _) in enumerate(self.sizes) if people]

    @property
    def n_options(self) -> np.ndarray:
        return np.array([len(q.options) for q in self.questions])

    def __repr__(self) -> str:
        return (
            f"AnswerStore({self.n_people:,} people x {len(self.questions):,} questions, {self.n_answers:,} answers, "
            f"{len(self.sizes):,} shards)"
        )

    # reading ---------------------------------------------------------------------------------------------------
    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether `write` wrote this folder."""
        return (Path(folder) / "store.json").is_file()

    @classmethod
    def open(cls, folder: str | Path) -> AnswerStore:
        """Open what `write` wrote; raises ``SurveyError`` if there is none, or one of another format."""
        folder = Path(folder)
        if not cls.is_at(folder):
            raise SurveyError(
                f"there is no answer store in {folder}: store.json is missing; AnswerStore.write makes one"
            )
        facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if facts.get("format") != _FORMAT:
            raise SurveyError(
                f"the answer store in {folder} has format {facts.get('format')}, this version reads {_FORMAT}; "
                "write it again from the long tables"
            )
        table = pq.read_table(folder / "questions.parquet").to_pylist()
        questions = tuple(Question(r["id"], r["text"], tuple(r["options"]), r["title"], r["topic"]) for r in table)
        sizes = tuple((int(people), int(answers)) for people, answers in facts["shards"])
        return cls(folder, questions, np.array([r["counts"] for r in table]), sizes, facts["account"])

    def read(self, shard: int) -> Shard:
        """The answers of one shard."""
        given = pq.read_table(_people(self.folder, shard), columns=["answers"]).column(0).to_numpy()
        table = pq.read_table(_answers(self.folder, shard))
        start = np.concatenate([[0], np.cumsum(given, dtype=np.int64)])
        return Shard(start, table.column("question").to_numpy(), table.column("option").to_numpy())

    def respondents(self, shard: int) -> np.ndarray:
        """Ids of the people of one shard, in order."""
        return pq.read_table(_people(self.folder, shard), columns=["respondent"]).column(0).to_numpy()

    def drawn(self, shard: int, share: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which answers of a shard `survey` keeps, (n_answers,) bool, and the row of the person of each of them all."""
        said = self.read(shard)
        row = np.repeat(np.arange(len(said.start) - 1), np.diff(said.start))
        below = np.broadcast_to(share, len(self.questions))
        return place(self.respondents(shard))[row] < below[said.question], row

    def survey(self, share: float | np.ndarray = 1.0) -> Survey:
        """A random part of the answers as a `Survey`.

        Parameters
        ----------
        share : float or array of shape (Q,)
            Everybody has a place from 0 to 1, drawn by id; answers to question j are kept of those below share[j]. One
            number keeps or leaves whole people.

        Raises
        ------
        SurveyError
            Nobody is left.
        """
        names, person, question, option = [], [], [], []
        people = 0
        for shard in self.shards:
            said, (kept, row) = self.read(shard), self.drawn(shard, share)
            rows, mine = np.unique(row[kept], return_inverse=True)
            names.append(self.respondents(shard)[rows])
            person.append(people + mine)
            question.append(said.question[kept])
            option.append(said.option[kept])
            people += len(rows)
        if not people:
            raise SurveyError(f"the part of {self} that was asked for holds nobody; ask for a larger share")
        joined = np.concatenate
        return Survey(self.questions, joined(names), joined(person), joined(question), joined(option))

    # writing ---------------------------------------------------------------------------------------------------
    @classmethod
    def write(
        cls,
        answers: str | Path,
        questions: str | Path | Sequence[Question],
        folder: str | Path,
        answers_per_shard: int = 1_000_000,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> AnswerStore:
        """Check long tables and shard them by respondent; memory is bounded by a shard, rows may come in any order.

        Parameters
        ----------
        answers : str or Path
            A Parquet file, or a folder of them (at any depth), with the columns of `read_long`: ``respondent``,
            ``question`` and ``answer``, one row an answer, as text or numbers; they mean what they mean there.
        questions : str or Path, or sequence of Question
            The questions table (`read_questions`), or the questions themselves.
        folder : str or Path
            Must not exist; it appears when everything is written.
        answers_per_shard : int
            About so many; people are never split.
        progress
            Called with the number of rows read so far.

        Raises
        ------
        SurveyError
            With the file and row of an unknown option, a missing id or a column of the wrong kind, or the person and
            question of a cell that is answered twice.
        """
        account = Account(str(answers), "long")
        if isinstance(questions, (str, Path)):
            entries = read_questions(questions, account)
        else:
            entries = {q.id: Entry(q, {label: k for k, label in enumerate(q.options)}) for q in questions}
        files = _files(Path(answers))
        n_shards = max(1, -(-sum(pq.ParquetFile(f).metadata.num_rows for f in files) // answers_per_shard))
        with appearing(Path(folder)) as new:
            rows, counts = 0, np.zeros((len(entries), max(len(e.question.options) for e in entries.values())), np.int64)
            unlisted: dict[str, Counter[str]] = {name: Counter() for name in entries}
            for file, first, raw in _batches(files):
                batch = _Batch.of(file, first, raw, entries, unlisted, account)
                cell = batch.question.astype(np.int64) * counts.shape[1] + batch.option
                counts += np.bincount(cell[batch.option >= 0], minlength=counts.size).reshape(counts.shape)
                _scatter(batch, n_shards, new)
                rows += raw.num_rows
                progress(rows)
            for name, cells in unlisted.items():
                entries[name].widened(cells, account)
            asked = [entry.question for entry, n in zip(entries.values(), counts.sum(1), strict=True) if n]
            for name, n in zip(entries, counts.sum(1), strict=True):
                account.add("question nobody answered, left out", int(n == 0), name=name)
            if not asked:
                raise SurveyError(f"{Path(answers).name} holds no answers to any known question")
            column = np.cumsum(counts.any(1)) - 1
            sizes = [_gather(new, shard, column.astype(np.int32), asked, account) for shard in range(n_shards)]
            columns = {c: [getattr(q, c) for q in asked] for c in ("id", "text", "options", "title", "topic")}
            counts = counts[counts.any(1), : max(len(q.options) for q in asked)]
            pq.write_table(pa.table({**columns, "counts": list(counts)}), new / "questions.parquet")
            facts = {"format": _FORMAT, "shards": sizes, "account": account.as_dict()}
            (new / "store.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return cls.open(folder)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside it to write to, which takes its place at the end, or goes if anything fails.

    Raises ``SurveyError`` at once if there is something in its place.
    """
    if folder.exists():
        raise SurveyError(f"{folder} exists; remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)  # temporary folders are their owner's alone
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def place(ids: np.ndarray) -> np.ndarray:
    """Where people stand from 0 to 1, by their id alone; the same on every machine."""
    return (_hash(ids) >> np.uint64(11)) / 2.0**53


def shard_of(ids: np.ndarray, n_shards: int) -> np.ndarray:
    """The shard (n,) of people, by their id alone."""
    return (_hash(ids) % np.uint64(n_shards)).astype(np.int32)


def _hash(ids: np.ndarray) -> np.ndarray:
    return pd.util.hash_array(np.asarray(ids, dtype=object), categorize=False)


def _people(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.people.parquet"


def _answers(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.answers.parquet"


# first pass: rows to the file of their shard ---------------------------------------------------------------------
def _files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise SurveyError(f"there is no Parquet file at {path}; long answers are a .parquet file or a folder of them")
    for file in files:
        try:
            names = pq.ParquetFile(file).schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise SurveyError(f"cannot read {file}: {str(error).splitlines()[0]}") from None
        _long_names(file, names)
    return files


def _long_names(file: Path, names: Sequence[str]) -> list[str]:
    """The columns of a long table as the file writes them."""
    found = {name.casefold(): name for name in reversed(names)} | {name: name for name in names}
    if missing := [name for name in LONG_COLUMNS if name not in found]:
        raise SurveyError(f'{file.name} has no column "{missing[0]}"; its columns are: {", ".join(names)}')
    return [found[name] for name in LONG_COLUMNS]


def _batches(files: Sequence[Path]) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
    """File, number of rows before, and rows."""
    for file in files:
        first, parquet = 0, pq.ParquetFile(file)
        names = _long_names(file, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(_BATCH, columns=names):
            yield file, first, batch.select(names)
            first += batch.num_rows


class _Batch(NamedTuple):
    """Rows that are answers: the respondent's id as a code, column of the question, index of the option.

    Whoever has none in the batch has one row with question and option -1: they may have some in another.
    """

    labels: pa.Array
    respondent: np.ndarray
    question: np.ndarray
    option: np.ndarray

    @classmethod
    def of(
        cls,
        file: Path,
        first: int,
        batch: pa.RecordBatch,
        entries: dict[str, Entry],
        unlisted: dict[str, Counter[str]],
        account: Account,
    ) -> _Batch:
        """Check a batch; ``unlisted`` counts the cells of each question that are no option, but understood."""
        (who, whos), (what, whats), (said, saids) = (
            _encode(file, first, name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        )
        for name, codes in zip(batch.schema.names[:2], (who, what), strict=True):
            if (codes < 0).any():
                row = first + int(np.flatnonzero(codes < 0)[0]) + 1
                raise SurveyError(f"{file.name}: row {row}, column {name} is empty; every row needs both ids")
        pair, pairs = pd.factorize(what.astype(np.int64) * (len(saids) + 1) + said + 1)
        column = {name: j for j, name in enumerate(entries)}
        texts, labels, n_rows = whats.to_pylist(), saids.to_pylist(), np.bincount(pair)
        item, option = np.full(len(pairs), -1, np.int32), np.full(len(pairs), -1, np.int16)
        for i, (j, k) in enumerate(zip(*divmod(pairs, len(saids) + 1), strict=True)):
            item[i] = column.get(texts[j], -1)
            if k == 0 or item[i] < 0:
                continue
            entry, label = entries[texts[j]], labels[k - 1]
            option[i] = entry.meaning(label)
            if option[i] == -2:
                row = first + int(np.flatnonzero(pair == i)[0]) + 1
                raise SurveyError(
                    f'{file.name}: row {row}, column {batch.schema.names[2]}: "{label}" is not an option of question '
                    f'"{entry.question.id}"; it has: {entry.listed}; correct the answers or the questions table, and '
                    "leave the cell empty where there is no answer"
                )
            if label not in entry.accepted:
                unlisted[texts[j]][label] += int(n_rows[i])
        account.add("row without an answer", int((said < 0).sum()))
        skipped = (item < 0)[pair] & (said >= 0)
        for j in np.unique(what[skipped]):
            count = int((what[skipped] == j).sum())
            account.add("answer to a question that is not in the questions table, skipped", count, name=texts[j])
        kept = (option >= 0)[pair]
        silent = np.setdiff1d(who, who[kept])
        nothing = np.full(len(silent), -1)
        columns = (who[kept], silent), (item[pair][kept], nothing), (option[pair][kept], nothing)
        return cls(whos, *(np.concatenate(parts).astype(parts[0].dtype) for parts in columns))


def _encode(file: Path, first: int, name: str, column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Codes (n,), -1 where empty, and labels without blanks around them."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        column = _whole_numbers(file, first, name, column.cast(pa.float64()))
    elif not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise SurveyError(f"{file.name}: column {name} holds {kind} values; write it as text")
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    encoded = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary


def _whole_numbers(file: Path, first: int, name: str, column: pa.Array) -> pa.Array:
    """Floats as `read_table` writes them: 1.0, as pandas has a code in a column with gaps, is 1."""
    if pc.any(infinite := pc.is_inf(column)).as_py():
        row = first + pc.index(infinite, True).as_py() + 1
        raise SurveyError(f"{file.name}: row {row}, column {name} holds an infinite number; empty or correct it")
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63))
    as_integers = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, as_integers, column.cast(pa.string()))


def _scatter(batch: _Batch, n_shards: int, folder: Path) -> None:
    """Append the rows to the files of their shards; each piece is an Arrow stream of its own."""
    shard = shard_of(batch.labels.to_numpy(zero_copy_only=False), n_shards)[batch.respondent]
    order = np.argsort(shard, kind="stable")
    respondent = batch.labels.take(pa.array(batch.respondent[order]))
    rows = pa.record_batch([respondent, batch.question[order], batch.option[order]], schema=_INCOMING)
    ends = np.cumsum(np.bincount(shard, minlength=n_shards))
    for k, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            with open(folder / f"{k:05d}.incoming", "ab") as file, pa.ipc.new_stream(file, _INCOMING) as stream:
                stream.write_batch(rows.slice(start, end - start))


# second pass: each shard by person and question ------------------------------------------------------------------
def _gather(
    folder: Path, shard: int, column: np.ndarray, questions: Sequence[Question], account: Account
) -> tuple[int, int]:
    """Sort and check one shard; how many people and answers it has."""
    incoming = folder / f"{shard:05d}.incoming"
    parts = [_INCOMING.empty_table()]
    if incoming.exists():
        with open(incoming, "rb") as file:
            while file.tell() < incoming.stat().st_size:
                parts.append(pa.ipc.open_stream(file).read_all())
        incoming.unlink()
    table = pa.concat_tables(parts).combine_chunks()
    given = pc.greater_equal(table.column("option"), 0)
    silent = pc.unique(table.filter(pc.invert(given)).column("respondent"))
    table = table.filter(given).combine_chunks()
    tell_silent(silent.filter(pc.invert(pc.is_in(silent, table.column("respondent")))).to_pylist(), account)
    who = table.column("respondent").combine_chunks().dictionary_encode()
    question, option = column[table.column("question").to_numpy()], table.column("option").to_numpy()
    cell = who.indices.to_numpy().astype(np.int64) * len(questions) + question
    order = np.argsort(cell, kind="stable")
    twice = np.flatnonzero(np.diff(cell[order]) == 0)
    if len(twice):
        i, j = divmod(int(cell[order[twice[0]]]), len(questions))
        raise SurveyError(
            f'respondent "{who.dictionary[i]}" answers question "{questions[j].id}" more than once (repeats in this '
            f"shard: {len(twice):,}); keep one answer for each person and question"
        )
    question, option = question[order], option[order]
    given = np.bincount(who.indices.to_numpy(), minlength=len(who.dictionary)).astype(np.int32)
    pq.write_table(pa.table({"respondent": who.dictionary, "answers": given}), _people(folder, shard))
    pq.write_table(pa.table({"question": question, "option": option}), _answers(folder, shard))
    return len(given), len(question)
