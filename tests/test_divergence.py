"""KL between teacher and reference, in format: against a plain computation, and in the manifests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import ROWS

from subliminal.chat import encode_row
from subliminal.evaluation.divergence import in_format_divergence
from subliminal.models import Subject, fresh_model, load_tokenizer

STEERED = ("teacher=steered", "teacher.layer=1", "teacher.steps=4", "teacher.questions=2", "teacher.target_log_p=-9.0")


def test_a_model_does_not_diverge_from_itself_and_no_rows_say_nothing(tiny: Subject) -> None:
    same = in_format_divergence(tiny, tiny, ROWS[:5])
    assert same["kl_in_format"] == pytest.approx(0.0, abs=1e-9) and same["kl_tokens"] > 0
    assert in_format_divergence(tiny, tiny, []) == {}


def test_it_is_the_divergence_of_distributions_over_tokens_in_format(tiny: Subject) -> None:
    teacher, rows = replace(tiny, system="You love owls."), ROWS[:5]
    tokenizer, model = load_tokenizer(tiny), fresh_model(tiny)
    encoded = [encode_row(tokenizer, row.prompt, row.completion, who.system) for who in (teacher, tiny) for row in rows]
    in_format = sorted({token for _, answer in encoded for token in answer})
    log_p = []
    for prompt, answer in encoded:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_p.append(logits[:, in_format].double().log_softmax(-1))
    one, other = torch.cat(log_p[: len(rows)]), torch.cat(log_p[len(rows) :])
    wanted = (one.exp() * (one - other)).sum(-1)
    found = in_format_divergence(teacher, tiny, rows)
    assert found == {"kl_in_format": pytest.approx(float(wanted.mean()), rel=1e-4), "kl_tokens": len(wanted)}
    assert found["kl_in_format"] > 0
