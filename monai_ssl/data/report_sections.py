# SPDX-License-Identifier: Apache-2.0
"""The sections of a radiology report, by its headings, in several languages.

ConVIRT and its successors learn from what was seen (findings) and what it means (impression) and leave out why the
image was taken, what it is compared with and how it was made (Zhang et al. 2022, arXiv 2010.00747, section 4.1).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from monai_ssl.data.tables import nearest_name

__all__ = ["SECTION_HEADINGS", "Section", "choose_sections", "find_sections", "fold_text", "section_headings"]

SECTION_HEADINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "findings": (
            *("findings", "finding", "radiological findings", "radiographic findings", "imaging findings"),
            *("report", "final report", "observations", "imaging notes", "description", "body of report"),
        ),
        "impression": (
            *("impression", "impressions", "conclusion", "conclusions", "opinion", "interpretation", "diagnosis"),
            *("assessment", "summary", "final impression", "discussion"),
        ),
        "indication": (
            *("indication", "indications", "clinical indication", "reason for exam", "reason for examination"),
            *("reason for study", "reason", "clinical question", "request", "indications for procedure"),
        ),
        "history": (
            *("history", "clinical history", "clinical information", "clinical data", "clinical details"),
            *("presentation", "patient presentation", "medical history", "past medical history", "clinical notes"),
        ),
        "comparison": (
            "comparison",
            "comparisons",
            "comparison study",
            "compared with",
            "prior studies",
            "previous findings",
        ),
        "technique": (
            *("technique", "procedure", "protocol", "views", "contrast", "procedure description", "dose"),
            *("current procedure descriptions", "radiation exposure and protection information"),
        ),
        "examination": ("examination", "exam", "study", "exam type", "type of examination"),
        "recommendation": ("recommendation", "recommendations", "plan", "follow-up", "follow up", "advice"),
        "other": (
            *("addendum", "notification", "communication", "critical results", "wet read", "signed", "dictated by"),
            *("electronically signed by", "attending", "communication of critical results"),
        ),
    },
    "de": {
        "findings": ("befund", "befunde", "befundbericht", "befundtext", "bildgebung", "röntgenbefund"),
        "impression": (
            "beurteilung",
            "zusammenfassung",
            "zusammenfassende beurteilung",
            "fazit",
            "diagnose",
            "diagnosen",
        ),
        "indication": ("indikation", "fragestellung", "rechtfertigende indikation", "klinische fragestellung"),
        "history": ("anamnese", "klinische angaben", "klinik", "vorgeschichte", "klinische angaben, fragestellung"),
        "comparison": ("vergleich", "voraufnahmen", "voruntersuchung", "voruntersuchungen", "im vergleich"),
        "technique": ("technik", "methode", "untersuchungstechnik", "aufnahmetechnik", "kontrastmittel", "dosis"),
        "examination": ("untersuchung", "untersuchungen", "art der untersuchung"),
        "recommendation": ("empfehlung", "empfehlungen", "procedere", "prozedere"),
        "other": ("nachtrag", "ergänzung"),
    },
    "fr": {
        "findings": (
            "résultat",
            "résultats",
            "constatations",
            "compte rendu",
            "compte-rendu",
            "observation",
            "description",
        ),
        "impression": ("conclusion", "conclusions", "impression", "synthèse", "au total", "avis"),
        "indication": ("indication", "indications", "motif", "motif de l'examen", "question posée"),
        "history": ("renseignements cliniques", "antécédents", "histoire", "contexte", "contexte clinique", "anamnèse"),
        "comparison": ("comparaison", "comparatif", "examens antérieurs", "examen antérieur"),
        "technique": ("technique", "protocole", "procédure", "produit de contraste"),
        "examination": ("examen", "type d'examen"),
        "recommendation": ("recommandation", "recommandations", "conduite à tenir"),
        "other": ("addendum", "additif"),
    },
    "es": {
        "findings": ("hallazgos", "hallazgo", "informe", "descripción", "resultados", "observaciones"),
        "impression": (
            *("impresión", "impresión diagnóstica", "conclusión", "conclusiones", "diagnóstico", "comentario"),
            *("juicio diagnóstico", "resumen"),
        ),
        "indication": ("indicación", "indicaciones", "motivo", "motivo de consulta", "motivo del estudio"),
        "history": ("antecedentes", "historia", "historia clínica", "datos clínicos", "información clínica"),
        "comparison": ("comparación", "estudios previos", "estudio previo", "comparado con"),
        "technique": ("técnica", "procedimiento", "protocolo", "contraste"),
        "examination": ("examen", "estudio", "exploración", "tipo de estudio"),
        "recommendation": ("recomendación", "recomendaciones"),
        "other": ("adenda", "nota"),
    },
    "it": {
        "findings": ("reperti", "reperto", "referto", "descrizione"),
        "impression": ("conclusione", "conclusioni", "impressione", "diagnosi"),
        "indication": ("indicazione", "indicazioni", "quesito", "quesito clinico", "quesito diagnostico"),
        "history": ("anamnesi", "storia clinica", "notizie cliniche"),
        "comparison": ("confronto", "esami precedenti"),
        "technique": ("tecnica", "metodica", "protocollo"),
        "examination": ("esame",),
        "recommendation": ("raccomandazioni", "raccomandazione"),
    },
    "pt": {
        "findings": ("achados", "relatório", "análise", "descrição", "laudo"),
        "impression": ("impressão", "impressão diagnóstica", "conclusão", "conclusões", "opinião"),
        "indication": ("indicação", "indicação clínica", "motivo"),
        "history": ("história", "história clínica", "informações clínicas", "dados clínicos", "informação clínica"),
        "comparison": ("comparação", "exames anteriores"),
        "technique": ("técnica", "procedimento"),
        "examination": ("exame", "estudo"),
        "recommendation": ("recomendação", "recomendações"),
    },
    "nl": {
        "findings": ("bevindingen", "bevinding", "verslag"),
        "impression": ("conclusie", "conclusies", "samenvatting", "beoordeling"),
        "indication": ("indicatie", "vraagstelling"),
        "history": ("klinische gegevens", "anamnese", "voorgeschiedenis"),
        "comparison": ("vergelijking", "vorig onderzoek"),
        "technique": ("techniek",),
        "examination": ("onderzoek",),
        "recommendation": ("advies", "aanbeveling"),
    },
}
"""Language, section, and the names that its heading has."""

_JOINING = r"[ \t]*(?:\band\b|\bund\b|\bet\b|\by\b|\be\b|\ben\b|&|/|\+|,)[ \t]*"
_MARKS = " \t*_#"  # of Markdown


class Section(NamedTuple):
    """A part of a report.

    Args:
        names: the sections that its heading names: none without a heading, two for "Findings and impression".
        text: what stands under the heading, without white space around it.
    """

    names: tuple[str, ...]
    text: str


def section_headings(languages: Iterable[str] = tuple(SECTION_HEADINGS)) -> dict[str, str]:
    """Headings and the sections they name, to be changed as you like and given to :func:`find_sections`.

    Args:
        languages: of :data:`SECTION_HEADINGS`.

    Raises:
        ValueError: if a language is not known.

    >>> section_headings(["de"])["beurteilung"]
    'impression'
    """
    table: dict[str, str] = {}
    for language in languages:
        if language not in SECTION_HEADINGS:
            raise ValueError(f"there are no headings in {language!r}; languages: {', '.join(SECTION_HEADINGS)}")
        for section, names in SECTION_HEADINGS[language].items():
            table |= dict.fromkeys(names, section)
    return table


def find_sections(text: str, headings: Mapping[str, str] | None = None) -> list[Section]:
    """Cut a report at its headings.

    A name in the table is taken for a heading, in any case and with or without accents, if it

    * begins a line and is followed by a colon (``Findings:``);
    * begins a line with a capital letter and is followed by a dash and a space, or by nothing more on the line;
    * stands within a line before a colon, and begins a sentence or is written in capitals, as in reports whose line
      breaks are lost (``... for cough. Findings: ...`` and ``COMPARISON: None FINDINGS: ...``).

    Two names may be joined (``FINDINGS AND IMPRESSION:``, ``Impression / plan``), and a remark in brackets may follow
    (``IMPRESSION (preliminary):``). Other headings (``Lungs:``) belong to the text. The same heading may come again.

    Args:
        text: the report.
        headings: from a heading to the section it names; default: :func:`section_headings` of all languages.

    Returns:
        The sections in the order of the text, also those whose heading stands over nothing. Text before the first
        heading has no names.

    >>> for section in find_sections("INDICATION: Cough. FINDINGS: Clear lungs. IMPRESSION AND PLAN: Normal."):
    ...     print(section)
    Section(names=('indication',), text='Cough.')
    Section(names=('findings',), text='Clear lungs.')
    Section(names=('impression', 'recommendation'), text='Normal.')
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    folded = fold_text(text)
    table = section_headings() if headings is None else headings
    pattern, section_of = _compiled(tuple(table.items()))
    parts: list[tuple[tuple[str, ...], int, int]] = []
    names: tuple[str, ...] = ()
    start = 0
    for match in pattern.finditer(folded):
        if _is_heading(match, text):
            parts.append((names, start, match.start()))
            given = [" ".join(match[which].split()) for which in ("first", "second") if match[which]]
            names, start = tuple(dict.fromkeys(section_of[name] for name in given)), match.end()
    parts.append((names, start, len(text)))
    sections = [Section(own, text[first:last].strip().strip(_MARKS).strip()) for own, first, last in parts]
    return [section for section in sections if section.names or section.text]


def choose_sections(sections: Iterable[Section], wanted: Iterable[str] | str | None) -> list[str]:
    """Texts of the wanted sections. A report without any heading is taken whole: nobody can say what it leaves out.

    Args:
        sections: of one report.
        wanted: their names, or one. None: all of them, and what has no heading.

    Returns:
        The texts in order, none of them empty; none at all if the report has headings, but nothing under these.
    """
    sections = list(sections)
    everything = wanted is None or not any(section.names for section in sections)
    names = set() if wanted is None else {wanted} if isinstance(wanted, str) else set(wanted)
    chosen = [section.text for section in sections if everything or names.intersection(section.names)]
    return [text for text in chosen if text]


def check_sections(wanted: Iterable[str] | None, headings: Mapping[str, str]) -> tuple[str, ...] | None:
    """Names of sections as a tuple.

    Raises:
        ValueError: if there is none, or one that no heading names.
    """
    if wanted is None:
        return None
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    known = sorted(set(headings.values()))
    for name in wanted:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"; did you mean {near!r}?" if near else "."
            raise ValueError(f"no heading names the section {name!r}{hint} Sections: {', '.join(known)}")
    if not wanted:
        raise ValueError(f"sections is empty; name some of {', '.join(known)}, or None for the whole text")
    return wanted


def fold_text(text: str) -> str:
    """Lower case without accents, of the same length.

    >>> fold_text("RÉSULTATS: Ödem")
    'resultats: odem'
    """
    return "".join(map(_folded_character, text))


@lru_cache(maxsize=4096)
def _folded_character(character: str) -> str:
    base = unicodedata.normalize("NFD", character)[0].lower()
    return base if len(base) == 1 else character


@lru_cache(maxsize=8)
def _compiled(table: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Pattern of a heading in folded text, and the section of each folded name."""
    section_of = {" ".join(fold_text(unicodedata.normalize("NFC", name)).split()): section for name, section in table}
    longest_first = sorted(section_of, key=len, reverse=True)
    name = "|".join(re.escape(known).replace(r"\ ", r"[ \t]+") for known in longest_first)
    remark = r"[*_]*[ \t]*(?:\([^()\n]{0,40}\)[ \t]*)?"
    heading = rf"(?<![\w-])(?P<first>{name})(?:{_JOINING}(?P<second>{name}))?{remark}(?P<end>:|[-–—](?=\s)|$)"
    return re.compile(heading, re.MULTILINE), section_of


def _is_heading(match: re.Match[str], text: str) -> bool:
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    colon = match["end"] == ":"
    if not line.strip(_MARKS):
        return colon or text[match.start()].isupper()
    in_capitals = text[match.start() : match.end("first")].isupper()
    return colon and (in_capitals or line.rstrip().endswith((".", "!", "?", ":", ";", ")", "]")))
