"""The 21 classes of the demo and the three hospitals' case mix: fixed public tables.

Rules.
- `CASE_MIX` is chosen by hand, not drawn and not fitted: for each chapter, how its training texts
  are shared out among the three hospitals, in percent. Every row sums to 100, so every training
  text goes to exactly one hospital. `--seed` decides *which* texts, never how many per cent.
- Labels are the chapters' numbers ("01" to "21"), short enough for a data file and a confusion
  matrix; people see `TITLES`.
Not done here: reading the classification (`icd`), dealing out the texts (`dataset`).

    >>> TITLES["15"]
    'Pregnancy, childbirth and the puerperium'
    >>> CASE_MIX["15"]
    (2, 96, 2)
"""

HOSPITALS: tuple[str, str, str] = ("trauma", "mother-and-child", "general-medicine")
"""The three sites, in the order of `CASE_MIX`'s columns."""

TITLES: dict[str, str] = {
    "01": "Certain infectious and parasitic diseases",
    "02": "Neoplasms",
    "03": "Diseases of the blood and blood-forming organs and certain disorders involving the immune mechanism",
    "04": "Endocrine, nutritional and metabolic diseases",
    "05": "Mental, Behavioral and Neurodevelopmental disorders",
    "06": "Diseases of the nervous system",
    "07": "Diseases of the eye and adnexa",
    "08": "Diseases of the ear and mastoid process",
    "09": "Diseases of the circulatory system",
    "10": "Diseases of the respiratory system",
    "11": "Diseases of the digestive system",
    "12": "Diseases of the skin and subcutaneous tissue",
    "13": "Diseases of the musculoskeletal system and connective tissue",
    "14": "Diseases of the genitourinary system",
    "15": "Pregnancy, childbirth and the puerperium",
    "16": "Certain conditions originating in the perinatal period",
    "17": "Congenital malformations, deformations and chromosomal abnormalities",
    "18": "Symptoms, signs and abnormal clinical and laboratory findings, not elsewhere classified",
    "19": "Injury, poisoning and certain other consequences of external causes",
    "20": "External causes of morbidity",
    "21": "Factors influencing health status and contact with health services",
}
"""Chapter number -> title in ICD-10-CM (NCHS). Chapter 22, codes for special purposes, is left out."""

LABELS: tuple[str, ...] = tuple(TITLES)
"""All classes, in the order of the classifier's outputs."""

CASE_MIX: dict[str, tuple[int, int, int]] = {
    # chapter: (trauma, mother-and-child, general medicine), per cent of the chapter's training texts
    "01": (10, 30, 60),  # infections
    "02": (5, 15, 80),  # neoplasms
    "03": (5, 30, 65),  # blood
    "04": (5, 25, 70),  # endocrine
    "05": (15, 20, 65),  # mental
    "06": (30, 15, 55),  # nervous system
    "07": (20, 20, 60),  # eye
    "08": (10, 50, 40),  # ear
    "09": (15, 5, 80),  # circulation
    "10": (15, 30, 55),  # respiration
    "11": (10, 15, 75),  # digestion
    "12": (25, 25, 50),  # skin
    "13": (65, 5, 30),  # musculoskeletal
    "14": (5, 40, 55),  # genitourinary
    "15": (2, 96, 2),  # pregnancy
    "16": (1, 98, 1),  # perinatal
    "17": (5, 85, 10),  # congenital
    "18": (20, 25, 55),  # symptoms
    "19": (80, 8, 12),  # injury
    "20": (80, 8, 12),  # external causes
    "21": (20, 40, 40),  # contact with services
}
"""Case mix by specialty; see the module's rules."""
