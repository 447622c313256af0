from __future__ import annotations

import gzip

import pytest

from personae.data.account import SurveyError
from personae.data.convai2 import read_convai2
from personae.data.dialogues import Turn

FILE = """1 your persona: i like tea.
2 your persona: my motto: your persona: be kind.
3 hi : how are you ?\tfine . your persona: what is it ?
4 partner's persona: is what i mean\ti see
1 your persona: i am old.
2 __SILENCE__\thello !
3 you there ?\tyes .
"""


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn(("partner", "self")[i % 2], text) for i, text in enumerate(texts))


def notes(dialogues) -> dict:
    return {note.reason: (note.count, note.examples) for note in dialogues.account.notes}


def test_personas_and_pairs(write):
    first, second = dialogues = read_convai2(write("talk.txt", FILE))
    assert dict(first.personas) == {"self": ("i like tea.", "my motto: your persona: be kind.")}
    assert first.turns == turns(
        "hi : how are you ?", "fine . your persona: what is it ?", "partner's persona: is what i mean", "i see"
    )
    assert (first.id, second.id) == ("1", "2")
    assert dialogues.account.format == "convai2"


def test_silence_is_no_utterance(write):
    dialogues = read_convai2(write("talk.txt", FILE))
    assert dialogues[1].turns == (Turn("self", "hello !"), *turns("you there ?", "yes ."))
    opener = next(e for e in dialogues.examples() if e.dialogue == "2")
    assert (opener.history, opener.reply, opener.persona) == ((), "hello !", ("i am old.",))
    assert notes(dialogues) == {"__SILENCE__, which is no utterance, left out": (1, ["talk.txt: line 6"])}


def test_personas_of_both_candidates_and_line_ends_of_windows(write):
    text = (
        "1 your persona: i sing.\r\n2 partner's persona: i dance.\r\n3 your persona: \r\n4 hi\thello\t\tone|two\r\n\r\n"
    )
    for file in (write("a.txt", "\ufeff" + text), write("a.txt.gz", gzip.compress(text.encode()))):
        dialogues = read_convai2(file)
        assert dict(dialogues[0].personas) == {"self": ("i sing.",), "partner": ("i dance.",)}
        assert dialogues[0].turns == turns("hi", "hello")
        assert notes(dialogues) == {
            "empty persona sentence, left out": (1, [f"{file.name}: line 3"]),
            "line with rewards or candidate replies, which are not read": (1, [f"{file.name}: line 4"]),
            "empty line": (1, [f"{file.name}: line 5"]),
        }


def test_empty_replies_one_sided_and_wordless_dialogues_are_counted(write):
    text = "1 your persona: a.\n2 hi\t\n3 hello ?\t  \n1 your persona: b.\n1 your persona: c.\n2 \tyes\n3 what ?\tno \n"
    dialogues = read_convai2(write("talk.txt", text))
    assert [d.turns for d in dialogues] == [
        (Turn("partner", "hi"), Turn("partner", "hello ?")),
        (),
        (Turn("self", "yes"), Turn("partner", "what ?"), Turn("self", "no")),
    ]
    assert notes(dialogues) == {
        "empty reply, left out": (2, ["talk.txt: line 2", "talk.txt: line 3"]),
        "dialogue in which only one speaker says something": (1, ["talk.txt: line 1"]),
        "dialogue without an utterance": (1, ["talk.txt: line 4"]),
        "empty utterance, left out": (1, ["talk.txt: line 6"]),
        "reply with blanks around it, blanks removed": (1, ["talk.txt: line 7"]),
    }


def test_only_line_ends_end_lines(write):
    dialogues = read_convai2(write("talk.txt", "1 one\u2028line\tone\x85reply\n"))
    assert dialogues[0].turns == turns("one\u2028line", "one\x85reply")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 hi\thello\n3 a\tb\n", "talk.txt: line 2 has the number 3 where 2, or 1 for a new dialogue is expected"),
        ("1 hi\thello\n2 a\tb\n2 a\tb\n", "talk.txt: line 3 has the number 2 where 3, or 1"),
        ("2 hi\thello\n", "talk.txt: line 1 has the number 2 where 1 is expected"),
        ("1 hi\thello\n\nhow\tare\n", 'talk.txt: line 3 begins with "how\tare"; every line'),
        ("1 hi\thello\n99999999999 a\tb", 'talk.txt: line 2 begins with "9999'),
        ("1 your persona: a.\n2 hi hello\n", "talk.txt: line 2 has no tab"),
        ("1 hi\thello\n2 your persona: a.\n", "talk.txt: line 2 is a persona sentence after the first utterance"),
        (b"1 hi\thello\n2 caf\xe9\tb\n", "talk.txt: line 2 is not UTF-8 (byte 0xe9 at its position 6)"),
        ("1 hi\ta\x00b\n", "talk.txt: line 1: the reply holds a NUL character"),
        ("1 your persona: a.\n", "talk.txt holds no utterance"),
        ("", "talk.txt holds no utterance"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_with_the_line(write, content, expected):
    with pytest.raises(SurveyError) as caught:
        read_convai2(write("talk.txt", content))
    assert str(caught.value).startswith(expected)


def test_endless_utterances_and_lines(write):
    with pytest.raises(SurveyError, match=r"line 2: the reply has 1,000,000 characters; more than 100,000 is nothing"):
        read_convai2(write("talk.txt", "1 hi\thello\n2 hi\t" + "x" * 1_000_000))
    with pytest.raises(SurveyError, match=r"line 1 is longer than 16 MB"):
        read_convai2(write("talk.txt", "1 hi\t" + "x" * (17 << 20)))
    limit = "x" * 100_000
    assert read_convai2(write("talk.txt", f"1 hi\t{limit}\n"))[0].turns == turns("hi", limit)


def test_a_cut_off_gzip_file(write):
    with pytest.raises(SurveyError, match=r"talk\.gz is a damaged or cut-off gzip file"):
        read_convai2(write("talk.gz", gzip.compress(FILE.encode() * 99)[:-20]))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "size", "pairs", "silent", "sentences"),
    [
        ("valid_self_original.txt", 1000, 7801, 0, 4483),
        ("train_self_original_part.txt", 2378, 16418, 1189, 10659),
    ],
)
def test_the_real_files(shared, file, size, pairs, silent, sentences):
    dialogues = read_convai2(shared / "convai2" / file)
    assert len(dialogues) == size
    assert len(dialogues.examples()) == len(dialogues.examples("self")) == pairs
    assert dict(dialogues.speakers) == {"partner": pairs - silent, "self": pairs}
    assert sum(len(d.personas["self"]) for d in dialogues) == sentences
    assert [note.count for note in dialogues.account.notes] == [silent] * (silent > 0)
