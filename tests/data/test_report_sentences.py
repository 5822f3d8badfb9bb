# SPDX-License-Identifier: Apache-2.0
"""Reports fall into sentences where a reader would say so."""

from __future__ import annotations

import pytest

from monai_ssl.data import split_sentences
from monai_ssl.data.report_sentences import count_words, remove_placeholders


def split(text: str) -> str:
    return " | ".join(split_sentences(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart is large. No effusion!  Why?", "The heart is large. | No effusion! | Why?"),
        ("Seen by Dr. Smith vs. the ward.", "Seen by Dr. Smith vs. the ward."),
        ("A mass, approx. 3 cm, e.g. a cyst.", "A mass, approx. 3 cm, e.g. a cyst."),
        ("Nodule No. 3 is old. Effusion? No. Heart is ok.", "Nodule No. 3 is old. | Effusion? | No. | Heart is ok."),
        ("It measures 1.2 cm. The other 3.4 x 0.5 cm.", "It measures 1.2 cm. | The other 3.4 x 0.5 cm."),
        ("It is 3 cm. in diameter.", "It is 3 cm. in diameter."),
        ("See Fig. 2. Film at 8 a.m. No change.", "See Fig. 2. | Film at 8 a.m. | No change."),
        ("no effusion. no pneumothorax. heart is ok.", "no effusion. | no pneumothorax. | heart is ok."),
        ("Read by J. Doe. Normal.", "Read by J. Doe. | Normal."),
        ("Possibly... fluid. Unclear... Repeat it.", "Possibly... fluid. | Unclear... | Repeat it."),
        ("Heart normal.No effusion.", "Heart normal. | No effusion."),
        ("Stable (see above.) The rest is normal.", "Stable (see above.) | The rest is normal."),
        ('He said "no pain." Then left.', 'He said "no pain." | Then left.'),
        ("Fraktur der 5. Rippe am 3. Tag. Z. B. Erguss, ca. 2 cm, Herz o.B. Kein Pneu.",
         "Fraktur der 5. Rippe am 3. Tag. | Z. B. Erguss, ca. 2 cm, Herz o.B. | Kein Pneu."),
        ("肺野清晰。心影正常。", "肺野清晰。 | 心影正常。"),
        ("", ""),
        (" . ... - \n\n * ", ""),
    ],
)  # fmt: skip
def test_sentences(text, expected):
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Large heart.\n2. No effusion.", "Large heart. | No effusion."),
        ("1. Large heart. 2. No effusion. 3. Nodule.", "Large heart. | No effusion. | Nodule."),
        ("1. Large heart 2. No effusion 3) Nodule", "Large heart | No effusion | Nodule"),
        ("(1) large heart\n(2) no effusion", "large heart | no effusion"),
        ("1.Large heart\n2.No effusion", "Large heart | No effusion"),
        ("a) large heart\nb) no effusion", "large heart | no effusion"),
        ("- large heart\n- no effusion\n• nodule", "large heart | no effusion | nodule"),
        ("Stable: 1. Large heart. 2. No effusion.", "Stable: | Large heart. | No effusion."),
        ("10. Ribs intact.", "Ribs intact."),
        ("1.5 cm nodule.", "1.5 cm nodule."),
    ],
)
def test_lists(text, expected):
    assert split(text) == expected


def test_wrapped_lines_are_joined_and_short_lines_are_not():
    wrapped = """The cardiac silhouette is enlarged and there is a moderate pleural effusion on
the right. Compared with the prior film there is a new consolidation at the left
Upper lobe, and ground-
glass opacity."""
    assert split_sentences(wrapped) == [
        "The cardiac silhouette is enlarged and there is a moderate pleural effusion on the right.",
        "Compared with the prior film there is a new consolidation at the left Upper lobe, and ground-glass opacity.",
    ]
    assert split("Heart size normal\nLungs are clear\nno effusion\n\nspine intact") == (
        "Heart size normal | Lungs are clear no effusion | spine intact"
    )
    # the first line is shorter by the heading that was before it
    assert (
        len(split_sentences("Upright and lateral radiographs of the\nChest show clear lungs and a heart of normal"))
        == 1
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A ___-year-old with cough.", "A year-old with cough."),
        ("Compared with [**2101-1-1**] and [**First Name8 (NamePattern2)**], stable.", "Compared with and, stable."),
        ("XXXX and lateral views from XXXX.", "and lateral views from."),
        ("Seen by <NAME> on <DATE-2> (<PHI TYPE=\"AGE\">).", "Seen by on."),
        ("Told to [NAME] at [REDACTED].", "Told to at."),
        ("Size < 3 cm and CD4 > 200, 47,XXX.", "Size < 3 cm and CD4 > 200, 47,XXX."),
        ("___. ___", ""),
    ],
)  # fmt: skip
def test_placeholders_are_taken_out(text, expected):
    assert split(text) == expected
    assert "_" not in remove_placeholders(text) and "**" not in remove_placeholders(text)


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("No effusion.", 2),
        ("No pleural effusion.", 3),
        ("- 3.5 cm .", 2),
        ("", 0),
        ("L'épanchement est petit", 3),
        ("肺正常", 3),
    ],
)
def test_words(sentence, words):
    assert count_words(sentence) == words
