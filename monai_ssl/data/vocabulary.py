# SPDX-License-Identifier: Apache-2.0
"""Closed lists of the header terms that may enter a table.

Code strings such as ``BodyPartExamined`` are typed by people and may hold anything, a name included. Only terms of
these lists are kept, so no header text reaches a table, a log or a checkpoint.
"""

from __future__ import annotations

import re

OTHER = "OTHER"


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modality (0008,0060): defined terms, DICOM PS3.3 section C.7.3.1.1.1, with the retired ones that archives hold.
MODALITIES = _terms(
    "AR ASMT AU BDUS BI BMD CF CR CS CT CTPROTOCOL DD DG DF DM DOC DS DX EC ECG EEG EMG EOG EPS ES FA FID FS GM HC "
    "HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA "
    "PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM "
    "SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF VL XA XC XAPROTOCOL XRF"
)

# Units (0054,1001): defined terms of positron emission tomography, DICOM PS3.3 section C.8.9.1.1.3.
UNITS = _terms(
    "CNTS NONE CM2 CM2ML PCNT CPS BQML MGMINML UMOLMINML MLMING MLG 1CM UMOLML PROPCNTS PROPCPS MLMINML MLML GML STDDEV"
)

# BodyPartExamined (0018,0015): defined terms, DICOM PS3.16 annex L, and what vendors write instead of them.
BODY_PARTS = _terms(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF "
    "CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE EAR "
    "ELBOW ESOPHAGUS EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS "
    "ILEUM ILIUM JAW KIDNEY KNEE LEG LIVER LOWEREXTREMITY LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM MOUTH NECK "
    "NECKCHEST NOSE ORBIT OVARY PANCREAS PATELLA PELVIS PENIS PHARYNX PROSTATE RECTUM RIB SACRUM SCALP SCAPULA "
    "SCLERA SCROTUM SELLA SHOULDER SHOULDERBLADE SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX "
    "THUMB THYMUS THYROID TIBIA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE UPPEREXTREMITY URETER URETHRA UTERUS VAGINA "
    "VULVA WHOLEBODY WRIST ZYGOMA"
)
_BODY_PART_SYNONYMS = {"THORAX": "CHEST", "RIBS": "RIB", "FEET": "FOOT", "HANDS": "HAND", "SINUSES": "SINUS"}

# ViewPosition (0018,5101): defined terms of CR, DX and mammography, DICOM PS3.3 sections C.8.1.1.1 and C.8.11.5.
VIEW_POSITIONS = _terms(
    "AP PA LL RL RLD LLD RLO LLO LATERAL LAT AXIAL OBLIQUE CC MLO ML LM LMO XCC XCCL XCCM FB SIO ISO CV AT"
)
# ViewCodeSequence (0054,0220): SNOMED CT and its older SRT spelling, DICOM PS3.16 CID 4010 and 4014.
VIEW_CODES = {
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-10214": "PA",
    "R-40888": "PA",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
}


def known_term(value: object, terms: frozenset[str]) -> str | None:
    """Give the value in upper case if ``terms`` has it, ``"OTHER"`` if it has not, and None for an empty value.

    >>> known_term("ct ", MODALITIES), known_term("Smith^John", MODALITIES), known_term("", MODALITIES)
    ('CT', 'OTHER', None)
    """
    text = str(value or "").strip().strip("\0").upper()
    if not text:
        return None
    return text if text in terms else OTHER


def known_body_part(value: object) -> str | None:
    """Give the standard spelling of a body part, ``"OTHER"`` for an unknown one and None for an empty value.

    >>> known_body_part("C SPINE"), known_body_part("Thorax"), known_body_part("JOHN SMITH")
    ('CSPINE', 'CHEST', 'OTHER')
    """
    text = re.sub(r"[\s_-]+", "", str(value or "").strip("\0")).upper()
    return known_term(_BODY_PART_SYNONYMS.get(text, text), BODY_PARTS)
