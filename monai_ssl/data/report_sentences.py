# SPDX-License-Identifier: Apache-2.0
"""Sentences of reports: abbreviations, lists, measures, wrapped lines, and what de-identification left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["count_words", "remove_placeholders", "split_sentences"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words before a full stop, by what they say of it.
_NEVER_LAST = (
    _words("dr drs mr mrs ms prof vs approx ca cf resp incl excl eg ie viz dept max min")
    | _words("bzw sog ggf evtl re li vgl inkl exkl insb hr fr zw")
    | _words("env mme mlle ex réf sr sra dra aprox ej dott sig pag pág")
)
_LAST_BEFORE_CAPITALS = _words("etc usw mm cm ml mg kg sec hrs yrs yr mo wk am pm lat ant post sup inf a.m p.m")
_LAST_BEFORE_CAPITALS |= {"o.b"}  # ohne Befund: without findings
_LAST_UNLESS_NUMBER = _words("no nos nr núm fig figs abb tab se ser im img vol st th")
_BEFORE_ORDINALS = _words("der die das den dem des am im vom zum zur ab bis")  # am 3. Tag, der 5. Rippe
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")

_PLACEHOLDERS = re.compile(
    r"(?:\[\*\*.{0,200}?\*\*\]"  # MIMIC-III: [**2101-1-1**]
    r"|_{2,}"  # MIMIC-CXR
    r"|\bX{4,}\b"  # Open-i
    r"|<[A-Z][A-Z0-9 _:=\"/-]*>"  # <NAME>, <DATE-1>, <PHI TYPE="DATE">
    r"|\[[A-Z]{3,}[A-Z0-9 _-]*\])"  # [NAME], [REDACTED]
    r"(?:-(?=\w))?",  # ___-year-old
    re.DOTALL,
)
_NUMBER = r"\(?(\d{1,2})[.)](?:[ \t]+(?=\S)|(?=[^\W\d_]))"
_MARKER = re.compile(rf"{_NUMBER}|(?:\(?[a-z]\)|[-–*•·▪])[ \t]+(?=\S)")
_ITEM_NUMBER = re.compile(r"(?:^|(?<=:))\s*\d{1,2}$")
_NEXT_MARKER = re.compile(rf"(?<=\s){_NUMBER}(?=[^\W\d_])")
_END = re.compile(r"(?:\.{3,}|…|[.!?])[\"'”»)\]]*(?=\s)|[。！？]|(?<=[a-zà-ÿ]{2})[.](?=[A-ZÀ-Þ][a-zà-ÿ])")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_NARROW = 40  # characters; no text is wrapped as narrow as that
_HEADING = 25  # characters that a heading, taken off, may have taken of the first line
_LONG = 4  # letters of a word that is hardly an abbreviation


def split_sentences(text: str) -> list[str]:
    """Split a report, or a section of it, into sentences.

    * Placeholders of de-identification are taken out first (see :func:`remove_placeholders`).
    * A full stop ends a sentence unless it belongs to an abbreviation (``Dr.``, ``vs.``, ``e.g.``, ``z. B.``), to a
      number (``No. 3``, ``1.2 cm``), to an initial or, in German, to an ordinal (``der 5. Rippe``). Before a small
      letter it ends one only after a word of four letters or more, so that texts in small letters are split too and
      unknown abbreviations are not. An ellipsis ends one before a capital letter.
    * A line break ends a sentence before a list's marker (``1.``, ``2)``, ``-``, ``•``), at an empty line, and where
      the next word begins with a capital letter and would have fitted into the line: else the line was wrapped. List
      markers are taken off; those of a list within a line (``1. Large heart. 2. No effusion.``) too.

    Args:
        text: any text; empty text has no sentences.

    Returns:
        The sentences with single spaces, none empty.

    >>> split_sentences("1. Nodule of 1.2 cm vs. 0.8 cm\\n   (Dr. ___). 2. No effusion.")
    ['Nodule of 1.2 cm vs. 0.8 cm (Dr.).', 'No effusion.']
    """
    text = remove_placeholders(text.replace("\r\n", "\n").replace("\r", "\n"))
    items = (item for block in _blocks(text) for item in _items(block))
    found = (_tidy(sentence) for item in items for sentence in _sentences(item))
    return [sentence for sentence in found if count_words(sentence)]


def remove_placeholders(text: str) -> str:
    """Take out what de-identification put in place of names and dates: ``___``, ``[** **]``, ``XXXX``, ``<NAME>``.

    Nothing is put in their place. A token of our own would be one more word that the text encoder, often pretrained,
    has never met, and where it stands says how a hospital hides names and nothing about the image.
    """
    return _PLACEHOLDERS.sub(" ", text)


def count_words(sentence: str) -> int:
    """Words and numbers of a sentence; of Chinese, Japanese and Korean, which leave no spaces, characters.

    >>> count_words("No effusion, 1.2 cm -"), count_words("肺野清晰")
    (4, 4)
    """
    rest = _CJK.sub(" ", sentence).split()
    return len(_CJK.findall(sentence)) + sum(any(map(str.isalnum, word)) for word in rest)


def _tidy(sentence: str) -> str:
    """Close the gaps that placeholders left."""
    sentence = re.sub(r"\(\s*\)|\[\s*\]", " ", sentence)
    sentence = " ".join(sentence.split())
    return re.sub(r" +(?=[,.;:!?)])", "", sentence).strip(" ,;-–")


def _blocks(text: str) -> Iterator[str]:
    """Runs of lines that were one before they were wrapped."""
    lines = [line.strip() for line in text.split("\n")]
    width = max(map(len, lines))
    block = ""
    for number, line in enumerate(lines):
        if block and (not line or _MARKER.match(line) or _is_meant(lines[number - 1], line, width, number == 1)):
            yield block
            block = ""
        if block.endswith("-") and block[-2:-1].isalpha() and line[:1].islower():
            block += line  # ground-/glass
        else:
            block = f"{block} {line}".strip()
    if block:
        yield block


def _is_meant(line: str, following: str, width: int, after_first: bool) -> bool:
    """Whether the break between two lines is more than the end of the paper."""
    if not following[0].isupper():
        return False
    length = len(line) + 1 + len(following.split()[0]) + (_HEADING if after_first else 0)
    return width < _NARROW or length <= width


def _items(block: str) -> Iterator[str]:
    """Items of a numbered list whose lines are lost: ``1. Large heart 2. No effusion``."""
    first = _MARKER.match(block)
    start, number = 0, int(first[1]) if first and first[1] else None
    if number is not None:
        for marker in _NEXT_MARKER.finditer(block, first.end()):
            if int(marker[1]) == number + 1:
                yield block[start : marker.start()]
                start, number = marker.start(), number + 1
    yield block[start:]


def _sentences(item: str) -> Iterator[str]:
    """Sentences of one line of text, without list markers."""
    marker = _MARKER.match(item)
    start = marker.end() if marker else 0
    for end in _END.finditer(item, start):
        number = _ITEM_NUMBER.search(item[start : end.start()]) if end.group() == "." else None
        if number:
            yield item[start : start + number.start()]
            start = end.end()
        elif _ends(item, start, end):
            yield item[start : end.end()]
            start = end.end()
    yield item[start:]


def _ends(item: str, start: int, end: re.Match[str]) -> bool:
    """Whether a full stop, or what looks like one, ends a sentence."""
    mark, rest = end.group(), item[end.end() :]
    following = rest.lstrip().lstrip("(\"'“«[")[:1]
    if not following or mark[0] in "!?。！？" or not rest[0].isspace():
        return True
    if mark.startswith(("...", "…")):
        return following.isupper()
    *before, word = [""] + item[start : end.start()].lower().split()
    word = word.lstrip("([\"'")
    if word in _LAST_BEFORE_CAPITALS:
        return following.isupper()
    if word in _NEVER_LAST or _DOTTED.fullmatch(word) or (len(word) == 1 and word.isalpha()):
        return False
    if word in _LAST_UNLESS_NUMBER:
        return not following.isdigit()
    if word.isdigit() and before[-1] in _BEFORE_ORDINALS:
        return False
    return not following.islower() or not word.isalpha() or len(word) >= _LONG
