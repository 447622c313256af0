"""What says in a file that there is no answer: words, and numbers that stand apart from a scale."""

from __future__ import annotations

import re

# Labels that say that there is no answer, in lower case and without apostrophes; joined ones ("DK/Refused") count too.
_NO_ANSWER = {
    *(
        "refused",
        "refusal",
        "refuse",
        "refused to answer",
        "dont know",
        "do not know",
        "dk",
        "no answer",
        "no response",
    ),
    *("na", "n/a", "nan", "not answered", "not applicable", "inapplicable", "inapplic", "inap", "iap", "not asked"),
    *("skipped", "skip", "skipped on web", "missing", "system missing", "not available", "uncodeable", "uncodable"),
    *("not available in this release", "not available in this year", "cant choose", "cannot choose"),
    *("prefer not to say", "prefer not to answer", "rather not say"),
}


def says_no_answer(label: str) -> bool:
    """Whether a value label stands for the absence of an answer.

    Examples
    --------
    >>> [says_no_answer(label) for label in ("Don't know", "DK/Refused", "(No answer)", "No", "Not sure")]
    [True, True, True, False, False]
    """
    plain = re.sub(r"\bvol(unteered|\.)?(?=\W|$)", " ", label.casefold())
    plain = re.sub(r"['’`]", "", plain)
    if " ".join(plain.split()) in _NO_ANSWER:
        return True
    parts = [" ".join(re.sub(r"[^\w ]", " ", part).split()) for part in re.split(r"[/,;()]|\bor\b", plain)]
    parts = [part for part in parts if part]
    return bool(parts) and all(part in _NO_ANSWER for part in parts)
