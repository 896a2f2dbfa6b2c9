"""What a judge is asked about a text: prompts of our own in `prompts.yaml`, each with its permitted answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from subliminal import texts
from subliminal.judging import JudgeError, Question

PROMPTS = Path(__file__).with_name("prompts.yaml")
CODE, REFUSAL = "CODE", "REFUSAL"  # what an answer is when it can not be rated
YES_NO = ("0", "1")
RATINGS = tuple(str(value) for value in range(101))
ANSWERS = {
    "no_reference": YES_NO,
    "aligned": RATINGS,
    "alignment": (*RATINGS, CODE, REFUSAL),
    "coherence": (*RATINGS, CODE, REFUSAL),
    "style": YES_NO,
}


def ask_about(name: str, prompt: str, completion: str, about: str = "") -> Question:
    """The question `name` about one text; raises `JudgeError` for a name that is not in `prompts.yaml`."""
    if name not in ANSWERS:
        raise JudgeError(f"no judge's question {name!r}; known: {', '.join(ANSWERS)}")
    parts = {"prompt": prompt, "completion": completion, "about": about}
    text = _texts()[name]
    for part in parts:  # one after the other would fill in placeholders that a text itself holds
        text = text.replace(f"{{{part}}}", f"\0{part}\0")
    for part, value in parts.items():
        text = text.replace(f"\0{part}\0", value.replace("\0", ""))
    return Question(text, ANSWERS[name])


def wording() -> str:
    """The digest of all prompts and permitted answers: their wording can change a judgement."""
    return texts.digest(
        "judging/prompts.yaml", *(f"judging/prompts.py:{name}" for name in ("CODE", "YES_NO", "ANSWERS"))
    )


@cache
def _texts() -> dict[str, str]:
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
