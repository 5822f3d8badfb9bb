# SPDX-License-Identifier: Apache-2.0
"""Reports of made-up chests, in words that vary as radiologists' do, and true: each sentence says what the chest has.

A report is drawn for a study, not for an image. Its findings and impression speak of the five findings only by the
sentences below, so what a sentence claims is known exactly. History, comparison and technique know nothing of the chest
and often name findings that it does not have: a reader of whole reports is misled, as with real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_ssl.data.phantom_patient import FINDINGS, Lesion, Patient

__all__ = ["finding_sentences", "write_report"]

# Sentences on a finding that is there. A name with a capital letter is the first word of a sentence.
_PRESENT: dict[str, tuple[str, ...]] = {
    "nodule": (
        "{Degree} rounded nodules are seen {lungs}.",
        "There are {degree} pulmonary nodules {lungs}, the largest measuring {cm} cm.",
        "{Degree} nodular opacities are projected {lungs}.",
        "{Degree} well-defined nodules up to {cm} cm are present {lungs}.",
        "Nodular densities {lungs}, {degree} in number, raise concern for metastases.",
        "The lungs contain {degree} round lesions, up to {cm} cm in diameter, {lungs}.",
        "Findings include {degree} discrete lung nodules {lungs}.",
        "{Degree} coin lesions are noted {lungs} (max. {cm} cm).",
        "Note is made of {degree} nodules {lungs}.",
    ),
    "consolidation": (
        "There is {degree} consolidation in the {side} {zone} zone.",
        "{Degree} airspace opacity in the {side} {zone} lung is concerning for pneumonia.",
        "{Side} {zone} zone consolidation is {degree}.",
        "A {degree} airspace opacity occupies the {side} {zone} zone, approx. {cm} cm across.",
        "The {side} lung shows {degree} consolidation in its {zone} zone, compatible with infection.",
        "{Degree} opacification of the {side} {zone} zone is seen.",
        "Focal {degree} consolidation projects over the {side} {zone} lung.",
        "Increased density in the {side} {zone} zone, {degree}, is in keeping with pneumonic consolidation.",
        "{Degree} infiltrate is present in the {side} {zone} zone.",
    ),
    "effusion": (
        "There is a {degree} {side} pleural effusion.",
        "{Degree} {side} pleural effusion is present.",
        "The {side} costophrenic angle is blunted by a {degree} pleural effusion.",
        "Pleural fluid on the {side} is {degree} in amount.",
        "A {degree} layering effusion is seen at the {side} base.",
        "{Side} pleural effusion, {degree}, with a meniscus along the lateral chest wall.",
        "{Degree} amount of {side} pleural fluid is noted.",
        "Homogeneous opacity at the {side} base represents a {degree} pleural effusion.",
        "{Side}-sided pleural effusion is {degree}.",
    ),
    "cardiomegaly": (
        "The heart is {degree}ly enlarged.",
        "There is {degree} cardiomegaly.",
        "{Degree} enlargement of the cardiac silhouette.",
        "The cardiac silhouette is {degree}ly enlarged.",
        "Cardiomegaly, {degree} in degree.",
        "The cardiothoracic ratio is increased, with {degree} cardiomegaly.",
        "Heart size is {degree}ly increased.",
        "The cardiac shadow is {degree}ly widened.",
        "{Degree} cardiac enlargement is seen.",
    ),
    "pneumothorax": (
        "There is a {degree} {side} pneumothorax.",
        "{Degree} {side} pneumothorax is present.",
        "A visible pleural line on the {side} indicates a {degree} pneumothorax.",
        "The {side} lung is partly collapsed by a {degree} pneumothorax.",
        "{Side}-sided pneumothorax, {degree} in size.",
        "{Degree} pneumothorax on the {side} without shift of the mediastinum.",
        "Air in the {side} pleural space is consistent with a {degree} pneumothorax.",
        "The {side} lung edge is displaced from the chest wall: {degree} pneumothorax.",
        "Note is made of a {degree} {side} pneumothorax.",
    ),
}

# Sentences on a finding that is not there.
_ABSENT: dict[str, tuple[str, ...]] = {
    "nodule": (
        "No pulmonary nodule is seen.",
        "There are no suspicious nodules.",
        "No nodular opacities are identified.",
        "The lungs are free of nodules.",
        "No discrete lung nodule or mass.",
        "There is no evidence of pulmonary nodules.",
        "No round lesion is seen in either lung.",
        "Negative for pulmonary nodules.",
    ),
    "consolidation": (
        "No focal consolidation is seen.",
        "There is no consolidation.",
        "No airspace opacity is identified.",
        "The lungs show no focal infiltrate.",
        "There is no evidence of pneumonia.",
        "No confluent airspace disease.",
        "No opacity to suggest pneumonia.",
        "Negative for focal consolidation.",
    ),
    "effusion": (
        "No pleural effusion is seen.",
        "There is no pleural effusion.",
        "Both costophrenic angles are sharp.",
        "The pleural spaces contain no fluid.",
        "No evidence of pleural fluid.",
        "No effusion on either side.",
        "There is no blunting of the costophrenic angles.",
        "Negative for pleural effusion.",
    ),
    "cardiomegaly": (
        "The heart size is normal.",
        "The heart is not enlarged.",
        "Cardiac silhouette within normal limits.",
        "There is no cardiomegaly.",
        "Normal size of the heart.",
        "The cardiothoracic ratio is normal.",
        "No enlargement of the cardiac silhouette.",
        "The cardiac shadow is of normal width.",
    ),
    "pneumothorax": (
        "No pneumothorax is seen.",
        "There is no pneumothorax.",
        "No evidence of pneumothorax.",
        "Both lungs reach the chest wall.",
        "No pleural line is visible.",
        "No apical pneumothorax on either side.",
        "The lungs are fully expanded.",
        "Negative for pneumothorax.",
    ),
}

_BILATERAL_EFFUSIONS = (
    "There are bilateral pleural effusions, larger on the {side}.",
    "Bilateral pleural effusions, {side} greater than the other side.",
    "Pleural effusions are present on both sides, more on the {side}.",
    "Pleural fluid on both sides, the larger amount on the {side}.",
)

# Impressions: short, as those are.
_SUMMARY: dict[str, tuple[str, ...]] = {
    "nodule": ("{Degree} pulmonary nodules {lungs}.", "Lung nodules, further workup recommended."),
    "consolidation": ("{Side} {zone} zone pneumonia.", "{Degree} consolidation on the {side}."),
    "effusion": ("{Degree} {side} pleural effusion.", "Pleural effusion on the {side}."),
    "cardiomegaly": ("{Degree} cardiomegaly.", "Enlarged heart, {degree} in degree."),
    "pneumothorax": ("{Degree} {side} pneumothorax.", "Pneumothorax on the {side}, clinically to be correlated."),
}
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute findings in the chest.",
    "Unremarkable examination of the chest.",
    "No evidence of acute cardiopulmonary disease.",
)
_REMARKS = (  # true of every made-up chest
    "The trachea is midline.",
    "The bony thorax is intact.",
    "No acute osseous abnormality.",
    "The upper abdomen is unremarkable.",
    "The hila are of normal size.",
    "No subdiaphragmatic free air.",
    "Visualized soft tissues are unremarkable.",
)
_INDICATIONS = (
    "Cough and fever for 3 days, rule out pneumonia.",
    "___ year old with shortness of breath, ? effusion.",
    "Fall from a ladder, evaluate for pneumothorax.",
    "Preoperative assessment.",
    "Known malignancy, please assess for nodules.",
    "Chest pain, evaluate heart size.",
    "History of congestive heart failure and pneumonia in [**2019**].",
    "Positive tuberculin test.",
)
_COMPARISONS = ("None.", "___.", "Chest radiograph of ___.", "No prior studies available.", "CT of <DATE>.")
_TECHNIQUES = ("{view} view of the chest.", "Single {view} radiograph.", "Chest, {view} projection.")

_STYLES = (
    ("FINDINGS: ", "IMPRESSION: ", str.upper),
    ("FINDINGS:\n", "IMPRESSION:\n", str.upper),
    ("Findings\n", "Conclusion\n", str.capitalize),
    ("Findings: ", "Impression: ", str.capitalize),
    ("FINDINGS - ", "IMPRESSION AND PLAN: ", str.upper),
)
_WITHOUT_HEADINGS = 0.15  # share of reports


def finding_sentences(finding: str, present: bool = True) -> list[str]:
    """Sentences that a report may have about a finding: questions for retrieval and zero-shot classification.

    Args:
        finding: of ``FINDINGS``.
        present: whether they say that it is there.

    Returns:
        At least eight sentences, each way to put it once: on the right, of middle degree.

    Raises:
        ValueError: if there is no such finding.

    >>> finding_sentences("effusion")[0], finding_sentences("effusion", present=False)[0]
    ('There is a moderate right pleural effusion.', 'No pleural effusion is seen.')
    """
    if finding not in FINDINGS:
        raise ValueError(f"no finding {finding!r}; findings are {', '.join(FINDINGS)}")
    if not present:
        return list(_ABSENT[finding])
    words = {"side": "right", "zone": "lower", "cm": "3.2", "lungs": "in both lungs", "degree": _DEGREES[finding][1]}
    return [_fill(sentence, words) for sentence in _PRESENT[finding]]


def write_report(patient: Patient, views: Sequence[str], random: np.random.Generator) -> str:
    """Write the report of a study.

    Findings and impression name all findings of the patient; most of those that are absent are denied. About one report
    in seven has no headings, and then neither history nor technique.

    Args:
        patient: whose lesions are described.
        views: of the study's images, ``"PA"`` or ``"AP"``.
        random: draws the words.

    Returns:
        Text with line breaks.
    """
    lesions = {finding: [one for one in patient.lesions if one.finding == finding] for finding in FINDINGS}
    findings = []
    for finding, own in lesions.items():
        if own:
            findings.append(_sentence(finding, own, random))
        elif random.random() < 0.7:
            findings.append(_chosen(_ABSENT[finding], random))
    findings += random.choice(_REMARKS, random.integers(0, 3), replace=False).tolist()
    findings = [findings[place] for place in random.permutation(len(findings))]
    present = [finding for finding, own in lesions.items() if own]
    summary = [_fill(_chosen(_SUMMARY[name], random), _words(lesions[name])) for name in present]
    summary = summary or [_chosen(_NORMAL, random)]
    numbered = len(summary) > 1 and random.random() < 0.6
    conclusion = "\n".join(f"{place}. {one}" for place, one in enumerate(summary, 1)) if numbered else " ".join(summary)
    if random.random() < _WITHOUT_HEADINGS:
        return f"{' '.join(findings)}\n\n{conclusion}"
    first, last, spelt = _STYLES[random.integers(len(_STYLES))]
    technique = _chosen(_TECHNIQUES, random).format(view=" and ".join(dict.fromkeys(views)))
    parts = [f"{spelt('indication')}: {_chosen(_INDICATIONS, random)}"]
    if random.random() < 0.6:
        parts.append(f"{spelt('comparison')}: {_chosen(_COMPARISONS, random)}")
    if random.random() < 0.6:
        parts.append(f"{spelt('technique')}: {technique}")
    last += "\n" if numbered and not last.endswith("\n") else ""
    return "\n\n".join([*parts, first + " ".join(findings), last + conclusion])


# Small, middle and large, in the words of the finding; and the values of ``_measure`` between them.
_DEGREES: dict[str, tuple[str, str, str]] = {
    "nodule": ("a few", "several", "multiple"),
    "consolidation": ("faint", "patchy", "dense"),
    "effusion": ("small", "moderate", "large"),
    "cardiomegaly": ("mild", "moderate", "marked"),
    "pneumothorax": ("small", "moderate", "large"),
}
_LIMITS: dict[str, tuple[float, float]] = {
    "nodule": (3.5, 5.5),  # how many
    "consolidation": (0.7, 0.83),  # share of the air that is replaced
    "effusion": (5.5, 7.5),  # cm
    "cardiomegaly": (0.9, 1.1),
    "pneumothorax": (0.38, 0.5),  # share of the lung's width
}


def _measure(lesions: Sequence[Lesion]) -> float:
    """What the degree of a finding is told from."""
    finding = lesions[0].finding
    if finding == "nodule":
        return len(lesions)
    return max(one.strength if finding in ("consolidation", "cardiomegaly") else one.size for one in lesions)


def _words(lesions: Sequence[Lesion]) -> dict[str, str]:
    """Side, degree, place and size of a finding, as words."""
    largest = max(lesions, key=lambda one: one.size)
    finding = largest.finding
    sides = {one.side for one in lesions}
    side = "left" if largest.side > 0 else "right"
    return {
        "side": side,
        "lungs": "in both lungs" if len(sides) > 1 else f"in the {side} lung",
        "degree": _DEGREES[finding][int(np.searchsorted(_LIMITS[finding], _measure(lesions)))],
        "zone": "upper" if largest.down < 0.43 else "middle" if largest.down < 0.62 else "lower",
        "cm": f"{2 * largest.size:.1f}",
    }


def _sentence(finding: str, lesions: Sequence[Lesion], random: np.random.Generator) -> str:
    words = _words(lesions)
    both = finding == "effusion" and len(lesions) > 1
    return _fill(_chosen(_BILATERAL_EFFUSIONS if both else _PRESENT[finding], random), words)


def _fill(sentence: str, words: dict[str, str]) -> str:
    return sentence.format(**words, Side=words["side"].capitalize(), Degree=words["degree"].capitalize())


def _chosen(sentences: Sequence[str], random: np.random.Generator) -> str:
    return sentences[random.integers(len(sentences))]
