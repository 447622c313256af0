from __future__ import annotations

import csv
import gzip
import io
import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personae.data import tables
from personae.data.account import Account, SurveyError
from personae.data.tables import read_header, read_table

# What other readers turn into booleans, numbers, dates or missing values.
TRICKY = ["true", "NA", "None", "01", "1.0", "NaN", "null", "False", "2020-01-01", "1e5", "inf", "-", "ä", "日本"]


def texts(path, name, account=None):
    return read_table(path, account or Account(str(path), "test")).columns[name].texts().tolist()


def message(path):
    with pytest.raises(SurveyError) as caught:
        read_table(path, Account(str(path), "test"))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_labels_stay_what_they_are(write, quote):
    lines = [f"{i},{quote}{label}{quote}" for i, label in enumerate(TRICKY)]
    assert texts(write("a.csv", "id,x\n" + "\n".join(lines)), "x") == TRICKY


def test_parquet_labels_stay_what_they_are(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"id": [str(i) for i in range(len(TRICKY))], "x": TRICKY}).to_parquet(path)
    assert texts(path, "x") == TRICKY


@pytest.mark.parametrize("empty", ["", '""', "  "])
def test_only_the_empty_cell_is_missing(write, empty):
    assert texts(write("a.csv", f"id,x\n1,{empty}\n2,None\n"), "x") == [None, "None"]


def test_parquet_columns_become_text_and_the_account_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "flag": [True, False, True],
            "whole": [1, 2, 3],
            "float": [1.0, float("nan"), 2.5],
            "category": pd.Categorical(["x", None, "x"], categories=["unused", "x"]),
            "nothing": [None, None, None],
            "empty": ["", "y", None],
        }
    ).to_parquet(path)
    account = Account(str(path), "test")
    table = read_table(path, account)
    assert {name: column.texts().tolist() for name, column in table.columns.items() if name != "id"} == {
        "flag": ["true", "false", "true"],
        "whole": ["1", "2", "3"],
        "float": ["1", None, "2.5"],
        "category": ["x", None, "x"],
        "nothing": [None, None, None],
        "empty": [None, "y", None],
    }
    assert table.columns["category"].labels == ["x"]  # an unused category is nobody's answer
    assert "1 x column of true/false values in Parquet, written as text: a.parquet: flag" in str(account)
    assert "2 x column of numbers in Parquet, written as text: a.parquet: whole; a.parquet: float" in str(account)


def test_parquet_nan_is_missing_like_null(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "x": [1.5, float("nan"), None]}), path)
    assert texts(path, "x") == ["1.5", None, None]


def test_parquet_infinity_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"id": ["a", "b"], "x": [1.0, float("inf")]}).to_parquet(path)
    assert message(path).startswith("a.parquet: row 2, column x holds an infinite number")


def test_parquet_lists_are_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "x": [["y", "z"]]}), path)
    assert "column x holds list" in message(path)


def test_parquet_nul_byte_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "x": ["y", "z\0"]}), path)
    assert message(path).startswith("a.parquet: row 2, column x holds a NUL byte")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_line_ends_delimiters_bom_and_gzip_make_no_difference(write, end, delimiter, bom, squeeze):
    content = (bom + end.join(["id{d}x", "1{d}a", "2{d}b", ""]).format(d=delimiter)).encode()
    path = write("a.csv.gz", gzip.compress(content)) if squeeze else write("a.csv", content)
    assert read_header(path) == ["id", "x"]
    assert texts(path, "x") == ["a", "b"]


def test_another_delimiter_is_said(write):
    account = Account("a.csv", "test")
    read_table(write("a.csv", "id;x\n1;a,b\n"), account)
    assert "semicolons between the cells" in str(account)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("who;weight, trimmed;Buy?\nr1;1,0;yes\nr2;0,5;no\n", {"who": "r1 r2", "weight, trimmed": "1,0 0,5"}),
        ('who;"Buy, or not?"\nr1;yes\nr2;no\n', {"who": "r1 r2", "Buy, or not?": "yes no"}),
        ("who,weight; trimmed,Buy?\nr1,1,yes\nr2,2,no\n", {"who": "r1 r2", "Buy?": "yes no"}),
        ('who,Buy?,why\nr1,yes,"no; no, no"\nr2,no,;\n', {"Buy?": "yes no", "why": "no; no, no ;"}),
        ("who\tBuy, or not; which?\nr1\tyes, or\nr2\tno;\n", {"who": "r1 r2"}),
    ],
)
def test_the_delimiter_is_the_one_that_gives_a_table(write, content, columns):
    path = write("a.csv", content)
    assert {name: " ".join(texts(path, name)) for name in columns} == columns


@pytest.mark.parametrize(
    "top", ["\n", "\r\n\r\n", "  \n", ",,\n", "sep=,\n", '"sep=,"\r\n', "\ufeffsep=,\n", "sep=,\n\n", '" \n",\n']
)
@pytest.mark.parametrize("squeeze", [False, True])
def test_what_stands_above_the_header_is_no_respondent(write, top, squeeze):
    content = (top + 'id,"x\ny"\n\n1,a\n2,b\n').encode()
    path = write("a.csv", gzip.compress(content) if squeeze else content)
    table = read_table(path, Account("a.csv", "test"))
    assert {name: column.texts().tolist() for name, column in table.columns.items()} == {
        "id": ["1", "2"],
        "x\ny": ["a", "b"],
    }
    rows = [number for number, _ in enumerate(csv.reader(io.StringIO(top.strip("\ufeff"), newline="")), 1)]
    assert [table.row(0), table.row(1)] == [len(rows) + 3, len(rows) + 4]


def test_a_file_may_say_its_delimiter(write):
    account = Account("a.csv", "test")
    assert texts(write("a.csv", "sep=;\nwho;Buy, or not\nr1;1,0\nr2;1,5\n"), "who", account) == ["r1", "r2"]
    assert "1 x file with semicolons between the cells" in str(account)
    assert texts(write("b.csv", "sep=|\nwho|x\nr1|1,0\n"), "x", account) == ["1,0"]
    assert message(write("c.csv", "sep=;\nwho;x\nr1;1\nr2;1;2\n")).startswith("c.csv: row 4 has 3 cells")
    assert message(write("d.csv", "sep=;\n")) == "d.csv is empty"


def test_blanks_around_labels_are_removed_and_counted(write):
    account = Account("a.csv", "test")
    assert texts(write("a.csv", "id,x\n1, a\n2,a\n3,b \n4,\u00a0a\n"), "x", account) == ["a", "a", "b", "a"]
    assert texts(write("b.csv", "id,x\n1,a\n2, b\n"), "x", account) == ["a", "b"]
    (note,) = account.notes
    assert (note.count, note.examples) == (4, ["a.csv: column x", "b.csv: column x"])


def test_empty_rows_are_counted_and_row_numbers_stay_those_of_the_file(write):
    path = write("a.csv", 'id,x\n,\n\n1,"two\nlines"\n,\n2,b\n')
    account = Account("a.csv", "test")
    table = read_table(path, account)
    assert table.columns["x"].texts().tolist() == ["two\nlines", "b"]
    assert [table.row(0), table.row(1)] == [4, 6]
    assert table.place(1, "x") == "a.csv: row 6, column x"
    assert "2 x empty row" in str(account)


def test_a_column_without_a_name_gets_its_number(write):
    assert texts(write("a.csv", ",x\n7,a\n"), "column 1") == ["7"]


# bad files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a.csv is empty"),
        (b"\n\n", "a.csv is empty"),
        (b"id,x\n", "a.csv has a header but no rows below it"),
        (b"id,x\n,\n,\n", "a.csv has a header but only empty rows below it"),
        (b"id\n1\n", "a.csv has a single column in row 1"),
        (b"id,x,x\n1,2,3\n", 'a.csv: row 1 names the column "x" twice (columns 2 and 3)'),
        (b"id,x\n1,a\n2,b,c\n", "a.csv: row 3 has 3 cells but the header has 2 columns; put labels"),
        (b"id,x\n1,a\n\n2\n", "a.csv: row 4 has 1 cells but the header has 2 columns"),
        (b'id,x\n1,"a\n2,b\n3,c,d\n', "a.csv: row 2, column x: a quotation mark is opened and never closed"),
        (b'id,x,y\n1,"a\n2,b,c\n', "a.csv: row 2 has 2 cells but the header has 3 columns; a quotation mark"),
        (b"id,x\n1,a\n2,caf\xe9\n", "a.csv: row 3 is not UTF-8 (byte 0xe9 at position 14 of the file)"),
        (b"id,caf\xe9\n1,a\n", "a.csv: row 1 is not UTF-8 (byte 0xe9 at position 6 of the file)"),
        (b"id,x\n1,a\n2,b\0c\n", "a.csv: row 3, column x holds a NUL byte"),
        ("id,x\n1,a\n".encode("utf-16"), "a.csv is in UTF-16"),
        (b"PK\x03\x04rest", "a.csv is a spreadsheet or an archive"),
        (
            b'id,x\n1,"' + b"a\n" * 60_000 + b'"\n',
            "a.csv: row 2, column x holds a cell of more than 100,000 characters",
        ),
        (b'id,x\n1,"' + b"a\n" * 90_000, "a.csv: row 2 holds a cell of more than 100,000 characters"),
        (gzip.compress(b"id,x\n1,a\n" * 9999)[:-20], "a.csv is a damaged or cut-off gzip file"),
        (b"\x1f\x8bnonsense", "a.csv is a damaged or cut-off gzip file"),
    ],
)
def test_a_bad_csv_is_named_with_row_and_column(write, content, expected):
    assert message(write("a.csv", content)).startswith(expected)


@pytest.mark.parametrize("content", [b"PAR1 is not enough", b"x" * 99])
def test_a_bad_parquet_is_named(write, content):
    assert message(write("a.parquet", content)).startswith("a.parquet is not a readable Parquet file")


def test_an_empty_parquet_is_named(write, tmp_path):
    assert message(write("a.parquet", b"")) == "a.parquet is empty"
    pd.DataFrame({"id": [], "x": []}).to_parquet(tmp_path / "b.parquet")
    assert message(tmp_path / "b.parquet").startswith("b.parquet has a header but no rows")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert message(tmp_path / "none.csv").startswith("there is no file")
    assert message(tmp_path / "none.parquet").startswith("there is no file")
    assert message(tmp_path).endswith("is a folder; a CSV or Parquet file is needed here")


@pytest.mark.parametrize(("before", "row"), [("id,x\n1,a\n", 3), ("", 1)])
def test_a_line_without_end_costs_a_bounded_amount(tmp_path, before, row):
    path = tmp_path / "a.csv"
    with open(path, "wb") as stream:
        stream.write(before.encode())
        for _ in range(200):
            stream.write(b"x" * (1 << 20))
    tracemalloc.start()  # sees the patient pass; arrow's own share is one block, MAX_LINE
    try:
        assert message(path).startswith(f"a.csv: row {row} is longer than 16 MB")
        assert tracemalloc.get_traced_memory()[1] < 8 * tables.MAX_LINE
    finally:
        tracemalloc.stop()


def test_an_unknown_column_lists_those_there_are(write):
    path = write("a.csv", "id,x\n1,a\n")
    with pytest.raises(SurveyError, match=r'^a\.csv has no column "y"; its columns are: id, x$'):
        read_table(path, Account("a.csv", "test")).column("y")


@pytest.mark.parametrize(("delimiter", "mark"), [(",", "comma"), (";", "semicolon"), ("\t", "tab")])
def test_a_row_of_too_few_cells_names_what_stands_between_them(tmp_path, delimiter, mark):
    path = tmp_path / "a.csv"
    path.write_text(delimiter.join(["respondent", "q1", "q2"]) + "\n" + delimiter.join(["r1", "yes"]) + "\n")
    with pytest.raises(SurveyError, match=rf"row 2 has 2 cells .* put labels that hold a {mark} in quotation marks$"):
        read_table(path, Account(str(path), "wide"))
