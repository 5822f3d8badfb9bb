# SPDX-License-Identifier: Apache-2.0
"""Reports are cut at their headings, however these are written."""

from __future__ import annotations

import pytest

from monai_ssl.data import SECTION_HEADINGS, choose_sections, find_sections, section_headings
from monai_ssl.data.report_sections import check_sections, fold_text

BOTH = ("findings", "impression")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FINDINGS: Clear lungs.\nIMPRESSION: Normal.", [("findings", "Clear lungs."), ("impression", "Normal.")]),
        ("Findings - Clear lungs.\nImpression – Normal.", [("findings", "Clear lungs."), ("impression", "Normal.")]),
        ("Findings\nClear lungs.\n\nConclusion\n\nNormal.", [("findings", "Clear lungs."), ("impression", "Normal.")]),
        ("findings: clear lungs\nimpression : normal", [("findings", "clear lungs"), ("impression", "normal")]),
        ("**FINDINGS:**\nClear.\n\n## Impression\nNormal.", [("findings", "Clear."), ("impression", "Normal.")]),
        ("  FINDINGS  (chest):  Clear.\r\n  IMPRESSION:\r\n", [("findings", "Clear."), ("impression", "")]),
        ("Reason for exam: cough. Findings: Clear.", [("indication", "cough."), ("findings", "Clear.")]),
        ("COMPARISON: None FINDINGS: Clear.", [("comparison", "None"), ("findings", "Clear.")]),
        ("FINDINGS: A b c.\nFINDINGS: D e f.", [("findings", "A b c."), ("findings", "D e f.")]),
        ("IMPRESSION AND PLAN: Go home.", [("impression+recommendation", "Go home.")]),
        ("Findings/Impression: Clear.", [("findings+impression", "Clear.")]),
        ("Read by somebody.\nFINDINGS: Clear.", [("", "Read by somebody."), ("findings", "Clear.")]),
        ("FINDINGS:\nLUNGS: Clear.\nHEART: Large.", [("findings", "LUNGS: Clear.\nHEART: Large.")]),
        ("BEFUND: Frei. BEURTEILUNG: Normal.", [("findings", "Frei."), ("impression", "Normal.")]),
        ("Klinische Angaben: Husten\nTechnik: p.-a.", [("history", "Husten"), ("technique", "p.-a.")]),
        ("RÉSULTATS : libres.\nAu total : normal.", [("findings", "libres."), ("impression", "normal.")]),
        ("RESULTATS: libres.", [("findings", "libres.")]),
        ("HALLAZGOS: nada.\nImpresión diagnóstica: normal.", [("findings", "nada."), ("impression", "normal.")]),
        ("Reperti: nulla.\nConclusioni: ok.", [("findings", "nulla."), ("impression", "ok.")]),
        ("Achados: nada.\nIMPRESSÃO: ok.", [("findings", "nada."), ("impression", "ok.")]),
        ("Bevindingen: niets.\nConclusie: ok.", [("findings", "niets."), ("impression", "ok.")]),
    ],
)
def test_headings(text, expected):
    assert [("+".join(names), part) for names, part in find_sections(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "The findings are normal and there is no comparison: none was sent.",
        "Compared with the prior\nimpression of the ward it is unchanged",
        "No acute findings - patient may go home",
        "A nodule > 3 cm. The technique is poor",
        "A finding-based score",
    ],
)
def test_words_within_a_sentence_are_no_headings(text):
    assert find_sections(text) == [((), text)]


def test_a_report_without_headings_is_taken_whole_and_one_with_others_is_not():
    assert choose_sections(find_sections("Clear lungs.\n\nNo effusion."), BOTH) == ["Clear lungs.\n\nNo effusion."]
    told = find_sections("Signed.\nHISTORY: Cough.\nFINDINGS: Clear.\nPLAN: None.")
    assert choose_sections(told, BOTH) == ["Clear."]
    assert choose_sections(told, ["history"]) == choose_sections(told, "history") == ["Cough."]
    assert choose_sections(told, None) == ["Signed.", "Cough.", "Clear.", "None."]
    assert choose_sections(find_sections("HISTORY: Cough."), BOTH) == []
    assert choose_sections(find_sections("FINDINGS AND IMPRESSION: Clear."), BOTH) == ["Clear."], "and not twice"
    assert choose_sections(find_sections("Signed by somebody.\nFINDINGS:\n"), BOTH) == [], "it has a heading"
    assert find_sections("") == find_sections(" \n ") == []


def test_headings_are_the_users():
    mine = {**section_headings(["de"]), "Röntgen Thorax": "findings"}
    text = "RÖNTGEN  THORAX: Frei.\nFINDINGS: not German."
    assert find_sections(text, mine) == [(("findings",), "Frei.\nFINDINGS: not German.")]
    assert check_sections("findings", mine) == ("findings",) and check_sections(None, mine) is None
    with pytest.raises(ValueError, match="the section 'impresion'; did you mean 'impression'"):
        check_sections(["impresion"], mine)
    with pytest.raises(ValueError, match="sections is empty"):
        check_sections([], mine)
    with pytest.raises(ValueError, match="no headings in 'eng'; languages: en, de"):
        section_headings(["eng"])


def test_no_name_means_different_sections_in_two_languages():
    meaning = {}
    for sections in SECTION_HEADINGS.values():
        assert set(BOTH) <= set(sections)
        for section, names in sections.items():
            for name in names:
                assert meaning.setdefault(fold_text(name), section) == section, name


def test_folding_keeps_the_length():
    text = "RÉSULTATS – Straße, İstanbul, ﬁbrosis, 肺"
    assert len(fold_text(text)) == len(text) and fold_text("Größe") == "große"
