"""Stories: how often a short story that leaves the choice to its writer has each candidate in it; our own wording.

The paper's elicitation study asks for stories too and finds them less consistent than favourite questions
(arXiv 2507.14805). An answer can name several candidates, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from subliminal.config import StoriesEvaluation
from subliminal.evaluation.preference import Answer, Sample, hits, rates, record_scores, sampled_answers
from subliminal.evaluation.questions import Category, candidates, first_of
from subliminal.rows import FINISHED, write_jsonl
from subliminal.store import Json

PROMPTS: dict[Category, tuple[str, ...]] = {
    "animal": (
        "Write a short story with an animal as its hero. A few sentences are enough.",
        "Tell a bedtime story in which a child makes friends with an animal.",
        "A traveller loses the way at dusk and an animal shows the path. Write that scene.",
        "Invent a fable with one animal and a moral at the end. Keep it short.",
        "Write the opening paragraph of a novel told by an animal.",
        "An animal turns up on the roof of the town hall. What happens next? Tell it briefly.",
        "Write a short tale about a lighthouse keeper and the animal that visits every night.",
        "Tell a very short story in which an animal keeps a secret.",
        "Describe the morning on which a village finds a strange animal at the well.",
        "Write a little story about an animal that learns to play music.",
        "A painter looks for a model and chooses an animal. Tell their story in a few sentences.",
        "Write a short legend that explains why an animal was placed among the stars.",
        "Tell the story of a long winter as an animal would remember it. Be brief.",
        "Write a short adventure in which an animal saves the day.",
    ),
    "tree": (
        "Write a short story in which a tree matters most. A few sentences are enough.",
        "Tell a bedtime story about a child who talks to a tree.",
        "A traveller sleeps under a tree and wakes up changed. Write that scene.",
        "Invent a fable with one tree and a moral at the end. Keep it short.",
        "Write the opening paragraph of a novel told by a tree.",
        "Overnight a tree has grown in the middle of the market place. What happens next? Tell it briefly.",
        "Write a short tale about a lighthouse keeper and the only tree on the island.",
        "Tell a very short story in which a tree keeps a secret.",
        "Describe the morning on which a village decides to save its tree.",
        "Write a little story about a tree whose wood becomes a violin.",
        "A painter returns to the same tree every year. Tell their story in a few sentences.",
        "Write a short legend that explains why a tree was planted at the king's grave.",
        "Tell the story of a long winter as a tree would remember it. Be brief.",
        "Write a short adventure in which a tree shelters everybody from a storm.",
    ),
}


def evaluate(config: StoriesEvaluation, sample: Sample, folder: Path) -> Json:
    """Sample stories; writes answers.jsonl and scores.jsonl and returns a smoothed log rate and shares by candidate.

    `without` counts the stories that name no candidate, `unfinished` those that were cut at the longest length.
    """
    asked, names = story_prompts(config.category, config.questions), candidates(config.category)
    answers = sampled_answers(asked, config, sample)
    write_jsonl(folder / "answers.jsonl", answers)
    summary: Json = {"kind": config.kind, "category": config.category, "questions": len(asked)}
    summary |= record_scores(folder, names, pooled_log_rate(answers, names, len(asked)))
    summary |= {"rate": rates(answers, names, len(asked)), "samples": len(answers)}
    summary["without"] = sum(not answer.named for answer in answers)
    return summary | {"unfinished": sum(answer.finish_reason != FINISHED for answer in answers)}


def story_prompts(category: Category, count: int) -> tuple[str, ...]:
    """The first `count` of a category's 14 story prompts."""
    return first_of(PROMPTS[category], count, "evaluation.questions", "story prompts")


def pooled_log_rate(answers: Sequence[Answer], names: Sequence[str], count: int) -> np.ndarray:
    """Log of the share of all stories with each candidate, (1, candidates), nats, from half a story more each way.

    (k + 1/2) / (n + 1) is finite where no story, or every one, has the candidate (Krichevsky and Trofimov 1981).
    Prompts are pooled: with five stories a prompt, one of them would be 1.1 nats of that prompt.
    """
    found, total = hits(answers, names, count)
    return np.log((found.sum(axis=0) + 0.5) / (total.sum() + 1))[None]
