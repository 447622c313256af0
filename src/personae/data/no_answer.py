"""What says in a file that there is no answer: words, and numbers that stand apart from a scale."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

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


# Numbers that surveys write where there is no answer: -1 to -9, 8 and 9; 77, 88 and 97 to 99 at any length and sign.
_CODE = re.compile(r"-[1-9]|[89]|-?(77+|88+|9+[789])")


def missing_codes(numbers: Iterable[float]) -> set[float]:
    """Which numbers of a question are codes for no answer: customary ones that stand apart from the scale.

    Notes
    -----
    The other numbers are the scale. Where they leave no gap, a code that follows after a gap stands apart; where people
    left gaps in it, as few people do on a scale from 0 to 10, one that is further away than the scale is long. A scale
    that has both signs, such as -2, -1, 1, 2, is whole.

    Examples
    --------
    >>> sorted(missing_codes([1, 2, 3, 4, 5, 99])), sorted(missing_codes([-9, 1, 2, 8]))
    ([99], [-9, 8])
    >>> [missing_codes(scale) for scale in ([-1, 0, 1], [-2, -1, 1, 2], range(11), [1, 2, 3, 5, 9])]
    [set(), set(), set(), set()]
    """
    numbers = set(numbers)
    codes = {n for n in numbers if n == int(n) and _CODE.fullmatch(str(int(n)))}
    scale = numbers - codes
    if len(scale) < 2 or {n for n in codes if n < 0} == {-n for n in scale}:
        return set()
    low, high = min(scale), max(scale)
    points = sorted(n for n in numbers if low <= n <= high)
    reach = 1 if all(b - a <= 1 for a, b in pairwise(points)) else high - low
    for n in sorted(n for n in codes if n > high):
        high = n if n - high <= reach else high
    for n in sorted((n for n in codes if n < low), reverse=True):
        low = n if low - n <= reach else low
    return {n for n in codes if not low <= n <= high}
