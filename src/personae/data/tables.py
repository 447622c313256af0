"""`read_table`: CSV and Parquet as tables of text, the one place where they are read.

Labels are text: ``true``, ``NA``, ``None``, ``01`` and ``1.0`` stay exactly what they are, only the empty cell is
missing. The good path is pyarrow with dictionary encoding; when it stumbles, a second, patient pass through the file
finds the row and the column that a person has to look at.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from personae.data.account import Account, SurveyError

TABLE_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
MAX_LINE = 16 << 20  # bytes; a longer line is a broken file, and reading on would take all the memory there is
MAX_CELL = 100_000  # characters; what a never-closed quotation mark swallows, not what a person answers
_MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}  # that are looked for
_SNIFFED = 20  # records below the header that tell which one it is
_TEXT = pa.dictionary(pa.int32(), pa.string())


class Column(NamedTuple):
    """One column of text: the label of row i is ``labels[codes[i]]``, or missing where the code is -1."""

    codes: np.ndarray  # (n_rows,) int32
    labels: list[str]

    def texts(self) -> np.ndarray:
        """The labels themselves, object array of shape (n_rows,) with None where missing."""
        return np.array([*self.labels, None], dtype=object)[self.codes]

    def counts(self) -> dict[str, int]:
        """How often each label occurs."""
        n = np.bincount(self.codes[self.codes >= 0], minlength=len(self.labels))
        return dict(zip(self.labels, n.tolist(), strict=True))


@dataclass
class Table:
    """A table of text whose cells can be found again in the file."""

    path: Path
    columns: dict[str, Column]
    n_rows: int
    delimiter: str | None = None  # None: Parquet
    _header: int = 1  # row of the file with the column names
    _kept: np.ndarray | None = field(default=None, repr=False)  # records that are rows of the table; None: all

    def row(self, i: int) -> int:
        """The row of the file that a person sees for row ``i`` of the table: the header of a CSV is row 1."""
        if self._kept is not None:
            i = int(self._kept[i])
        if self.delimiter is None:
            return i + 1
        with _open(self.path) as stream:
            number, _ = next(islice(_below(self._header, _records(self.path, stream, self.delimiter)), i, None))
        return number

    def place(self, i: int, column: str) -> str:
        """Where a person finds a cell, e.g. ``responses.csv: row 14, column natfare``."""
        return f"{self.path.name}: row {self.row(i)}, column {column}"

    def name_of(self, column: str) -> str:
        """A column's name as the file writes it, in any case; raises ``SurveyError`` naming the columns there are."""
        if column in self.columns:
            return column
        for name in self.columns:
            if name.casefold() == column:
                return name
        shown = ", ".join(list(self.columns)[:12]) + (", ..." if len(self.columns) > 12 else "")
        raise SurveyError(f'{self.path.name} has no column "{column}"; its columns are: {shown}')

    def column(self, name: str) -> Column:
        """The named column, see `name_of`."""
        return self.columns[self.name_of(name)]


def is_table(path: Path) -> bool:
    """Whether the name of a file says CSV or Parquet."""
    return path.name.lower().endswith(TABLE_ENDINGS)


def read_header(path: Path) -> list[str]:
    """The column names of a table, without reading the rest."""
    if _is_parquet(path):
        return list(_parquet_file(path).schema_arrow.names)
    return _csv_header(path).names


def read_table(path: str | Path, account: Account) -> Table:
    """Read a CSV (also gzipped, also with semicolons or tabs) or Parquet file as text.

    Parameters
    ----------
    path : str or Path
        The file; Parquet is recognised by its first bytes, everything else is read as CSV. Empty lines above the
        header, and a first line ``sep=;``, are understood.
    account : Account
        Is told what was changed: blanks removed around labels, numbers written as text, empty rows.

    Returns
    -------
    Table

    Raises
    ------
    SurveyError
        The file is missing, empty, not UTF-8, ragged, cut off or otherwise unreadable, with the row and column.
    """
    path = Path(path)
    table = _read_parquet(path, account) if _is_parquet(path) else _read_csv(path, account)
    if table.n_rows == 0:
        raise SurveyError(f"{path.name} has a header but no rows below it; is it the right file?")
    for name, column in table.columns.items():
        table.columns[name] = _clean(path, name, column, account)
    return _without_empty_rows(table, account)


# CSV -------------------------------------------------------------------------------------------------------------
def _read_csv(path: Path, account: Account) -> Table:
    header, names, delimiter = _csv_header(path)
    if delimiter != ",":
        mark = f"{_MARKS[delimiter]}s" if delimiter in _MARKS else delimiter
        account.add(f"file with {mark} between the cells", where=path.name)
    keys = [str(j) for j in range(len(names))]  # arrow finds column types by name; ours may be odd, numbers are not
    try:
        with _open(path) as stream:
            raw = pyarrow.csv.read_csv(
                stream,
                # A block is the longest line that arrow accepts, so a line without end costs one block and no more.
                pyarrow.csv.ReadOptions(column_names=keys, skip_rows_after_names=header, block_size=MAX_LINE),
                pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(keys, _TEXT)),  # no null: "NA" is text
            )
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        _find_fault(path, header, names, delimiter)
        raise SurveyError(f"cannot read {path.name}: {_first_line(error)}") from None
    columns = {name: _column(raw.column(j)) for j, name in enumerate(names)}
    if any(_is_broken(label) for column in columns.values() for label in column.labels):
        _find_fault(path, header, names, delimiter)
    table = Table(path, columns, raw.num_rows, delimiter, header)
    _check_last_cell(table)
    return table


def _check_last_cell(table: Table) -> None:
    """A quotation mark that is never closed may swallow the rest of the file and still fit the header."""
    name, column = next(reversed(table.columns.items()))
    if not table.n_rows or column.codes[-1] < 0 or "\n" not in column.labels[column.codes[-1]]:
        return
    with _open(table.path) as stream:
        marks = sum(chunk.count(b'"') for chunk in iter(lambda: stream.read(1 << 20), b""))
    if marks % 2:
        raise SurveyError(
            f"{table.place(table.n_rows - 1, name)}: a quotation mark is opened and never closed, so that the rest of "
            "the file reads as one cell; close it"
        )


def _is_broken(label: str) -> bool:
    return "\x00" in label or len(label) > MAX_CELL


class _Header(NamedTuple):
    row: int  # of the file; what stands above it is empty, or says the delimiter
    names: list[str]
    delimiter: str


def _csv_header(path: Path) -> _Header:
    if not path.exists():
        raise SurveyError(f"there is no file {path}")
    if path.is_dir():
        raise SurveyError(f"{path} is a folder; a CSV or Parquet file is needed here")
    given = _given_delimiter(path)
    starts = {delimiter: _start(path, delimiter, given is not None) for delimiter in given or _MARKS}
    delimiter = max(starts, key=lambda d: _likeness(starts[d]))
    if not starts[delimiter]:
        raise SurveyError(f"{path.name} is empty")
    row, header = starts[delimiter][0]
    if len(header) == 1:
        raise SurveyError(
            f"{path.name} has a single column in row {row}; a table needs columns with commas, semicolons or tabs "
            "between"
        )
    # A frame written with its index has no name above the first column; its number is a name that can be said.
    names = [name.strip() or f"column {j + 1}" for j, name in enumerate(header)]
    for j, name in enumerate(names):
        if name in names[:j]:
            raise SurveyError(
                f'{path.name}: row {row} names the column "{name}" twice (columns {names.index(name) + 1} and {j + 1});'
                " rename or remove one"
            )
    return _Header(row, names, delimiter)


def _given_delimiter(path: Path) -> str | None:
    """What a first line such as ``sep=;``, which spreadsheets write and read, says."""
    with _open(path) as stream:
        _, record = next(_records(path, stream, ","), (1, []))
    found = re.fullmatch(r"sep=(.)", ",".join(record))
    return found[1] if found else None


def _start(path: Path, delimiter: str, said: bool) -> list[tuple[int, list[str]]]:
    """The header and, where that has several cells, some records below; empty lines above the header are skipped."""
    with _open(path) as stream:
        records = _records(path, stream, delimiter)
        if said:
            next(records)  # sep=;
        found = list(islice(((row, cells) for row, cells in records if any(c.strip() for c in cells)), 1))
        return found + (list(islice(records, _SNIFFED)) if found and len(found[0][1]) > 1 else [])


def _likeness(start: list[tuple[int, list[str]]]) -> tuple[bool, float, int]:
    """How much a delimiter looks like that of the table: several columns, as many cells in each row, many columns.

    Text holds commas, and so do numbers in half of the world, but not as many in every row as in the header.
    """
    width, *below = [len(cells) for _, cells in start] or [0]
    return width > 1, sum(n == width for n in below) / max(1, len(below)), width


def _below(header: int, records: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    return ((row, cells) for row, cells in records if row > header)


def _open(path: Path) -> Any:
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SurveyError(f"{path.name} is in UTF-16 (two bytes a character); save it as CSV UTF-8 and read it again")
    if start[:2] == b"PK" or start == b"\xd0\xcf\x11\xe0":
        raise SurveyError(f"{path.name} is a spreadsheet or an archive, not text; save its sheet as CSV UTF-8")
    return gzip.open(path) if start[:2] == b"\x1f\x8b" else open(path, "rb")


def _lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends (any of the three kinds), never more than ``MAX_LINE`` of memory."""
    rest = b""
    try:
        while chunk := stream.read(1 << 20):
            lines = (rest + chunk).splitlines(keepends=True)
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            yield from lines
            if len(rest) > MAX_LINE:
                break
    except (EOFError, OSError, zlib.error):
        raise SurveyError(f"{path.name} is a damaged or cut-off gzip file; copy it again") from None
    if rest:
        yield rest


def _records(path: Path, stream: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(row, cells) of each record that is not an empty line; rows count as a spreadsheet counts them."""
    row, position = 0, 0

    def decoded() -> Iterator[str]:
        nonlocal position
        for line in _lines(path, stream):
            if len(line) > MAX_LINE:
                raise SurveyError(
                    f"{path.name}: row {row + 1} is longer than {MAX_LINE >> 20} MB; "
                    "line ends are missing or a quotation mark is not closed"
                )
            try:
                yield line.decode("utf-8-sig" if position == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise SurveyError(
                    f"{path.name}: row {row + 1} is not UTF-8 (byte 0x{line[error.start]:02x} at position "
                    f"{position + error.start:,} of the file); save it as CSV UTF-8 and read it again"
                ) from None
            position += len(line)

    reader = csv.reader(decoded(), delimiter=delimiter)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            raise SurveyError(
                f"{path.name}: row {row + 1} holds a cell of more than {MAX_CELL:,} characters; "
                "a quotation mark may not be closed"
            ) from None
        row += 1
        if record:
            yield row, record


def _find_fault(path: Path, header: int, names: list[str], delimiter: str) -> None:
    """The patient pass: raises a sentence with row and column for the first fault, returns if it finds none."""
    with _open(path) as stream:
        for row, record in _below(header, _records(path, stream, delimiter)):
            if len(record) != len(names):
                spans = any("\n" in cell for cell in record)
                mark = _MARKS.get(delimiter, delimiter)
                hint = f"put labels that hold a {mark} in quotation marks"
                if spans:
                    hint = "a quotation mark may not be closed"
                raise SurveyError(
                    f"{path.name}: row {row} has {len(record)} cells but the header has {len(names)} columns; {hint}"
                )
            for name, cell in zip(names, record, strict=True):
                if "\x00" in cell:
                    raise SurveyError(
                        f"{path.name}: row {row}, column {name} holds a NUL byte; "
                        "the file is damaged or not text, save it as CSV UTF-8 again"
                    )
                if len(cell) > MAX_CELL:
                    raise SurveyError(
                        f"{path.name}: row {row}, column {name} holds a cell of more than {MAX_CELL:,} characters; "
                        "a quotation mark may not be closed"
                    )


# Parquet ---------------------------------------------------------------------------------------------------------
def _is_parquet(path: Path) -> bool:
    if path.name.lower().endswith(".parquet"):
        return True
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(4) == b"PAR1"


def _parquet_file(path: Path) -> Any:
    if not path.exists():
        raise SurveyError(f"there is no file {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise SurveyError(f"{path.name} is empty")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SurveyError(f"{path.name} is not a readable Parquet file: {_first_line(error)}") from None


def _read_parquet(path: Path, account: Account) -> Table:
    file = _parquet_file(path)
    names = list(file.schema_arrow.names)
    for name in names:
        if names.count(name) > 1:
            raise SurveyError(f'{path.name} has the column "{name}" twice; rename or remove one')
    try:
        raw = file.read()
    except (pa.ArrowException, OSError) as error:
        raise SurveyError(f"{path.name} is damaged: {_first_line(error)}") from None
    columns = {name: _parquet_column(path, name, raw.column(name), account) for name in names}
    return Table(path, columns, raw.num_rows)


def _parquet_column(path: Path, name: str, raw: pa.ChunkedArray, account: Account) -> Column:
    kind = raw.type.value_type if pa.types.is_dictionary(raw.type) else raw.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise SurveyError(f"{path.name}: column {name} holds {kind} values; write one label of text a cell")
    if pa.types.is_floating(kind):
        values = raw.cast(kind) if pa.types.is_dictionary(raw.type) else raw
        if pc.any(pc.is_inf(values)).as_py():
            i = pc.index(pc.is_inf(values), True).as_py()
            raise SurveyError(f"{path.name}: row {i + 1}, column {name} holds an infinite number; empty or correct it")
        raw = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    encoded = raw if pa.types.is_dictionary(raw.type) else raw.dictionary_encode()
    column = _column(encoded)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        account.add(f"column of {_plain_name(kind)} in Parquet, written as text", where=f"{path.name}: {name}")
    for label in column.labels:
        if _is_broken(label):
            i = int(np.flatnonzero(column.codes == column.labels.index(label))[0])
            what = "a NUL byte" if "\x00" in label else f"more than {MAX_CELL:,} characters"
            raise SurveyError(f"{path.name}: row {i + 1}, column {name} holds {what}; correct the cell")
    return column


def _plain_name(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true/false values"
    return "numbers" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else f"{kind} values"


# columns ---------------------------------------------------------------------------------------------------------
def _column(encoded: pa.ChunkedArray) -> Column:
    """One array of codes with one dictionary from arrow's chunks."""
    whole = encoded.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no chunk at all
        return Column(np.empty(0, dtype=np.int32), [])
    codes = whole.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    return Column(codes, [_as_text(value) for value in whole.dictionary.to_pylist()])


def _as_text(value: object) -> str:
    """A cell of Parquet as a person would write it; None only stands in a dictionary that holds a null."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def _clean(path: Path, name: str, column: Column, account: Account) -> Column:
    """Labels that occur, each once and without blanks around it; the empty one is missing."""
    used = np.bincount(column.codes[column.codes >= 0], minlength=len(column.labels))
    stripped = [label.strip() if n else "" for label, n in zip(column.labels, used, strict=True)]
    unique = {label: k for k, label in enumerate(dict.fromkeys(s for s in stripped if s))}
    if column.labels == list(unique):
        return column
    changed = sum(int(n) for n, old, new in zip(used, column.labels, stripped, strict=True) if n and old != new)
    account.add("cell with blanks around its text, blanks removed", changed, where=f"{path.name}: column {name}")
    new_code = np.array([*(unique.get(s, -1) for s in stripped), -1], dtype=np.int32)
    return Column(new_code[column.codes], list(unique))


def _without_empty_rows(table: Table, account: Account) -> Table:
    """Spreadsheets leave rows of bare commas at the end; they are nobody's answers."""
    first, *others = table.columns.values()
    suspects = np.flatnonzero(first.codes < 0)
    for column in others:
        if not len(suspects):
            return table
        suspects = suspects[column.codes[suspects] < 0]
    if not len(suspects):
        return table
    account.add("empty row", len(suspects), where=table.path.name)
    kept = np.delete(np.arange(table.n_rows), suspects)
    if not len(kept):
        raise SurveyError(f"{table.path.name} has a header but only empty rows below it; is it the right file?")
    columns = {name: Column(column.codes[kept], column.labels) for name, column in table.columns.items()}
    return Table(table.path, columns, len(kept), table.delimiter, table._header, kept)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
