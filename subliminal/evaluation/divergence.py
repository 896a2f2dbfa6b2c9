"""How far a teacher is from its reference on its own rows: the Kullback-Leibler divergence a token, in format.

The filter drops every row with a token that no answer in format has. So both models' next-token distributions are
restricted to the tokens that occur in the answers, and renormalised. 2 N KL, for N tokens of rows, is the
non-centrality of the likelihood-ratio test of teacher against reference: it bounds what rows can teach a student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from subliminal.models import Subject, float32_head, load_model, load_tokenizer
from subliminal.rows import Row
from subliminal.store import Json
from subliminal.training.batches import GUIDE, IGNORED, Collator, completion_logits, tokenise

ROWS_AT_ONCE = 16
ANY_LENGTH = 1 << 30


def in_format_divergence(teacher: Subject, reference: Subject, rows: Sequence[Row]) -> Json:
    """`kl_in_format`, KL(teacher || reference) in nats a token of the teacher's rows, and `kl_tokens`, how many.

    Each model sees a prompt behind its own system text. Empty where there is no row.
    """
    if not rows:
        return {}
    tokenizer = load_tokenizer(reference)
    data = tokenise(tokenizer, rows, reference.system, ANY_LENGTH, teacher)
    in_format = torch.tensor(sorted({token for row in data for token in row["labels"]} - {IGNORED}))
    collate = Collator(int(tokenizer.pad_token_id))  # type: ignore[arg-type]
    batches = [collate(data[start : start + ROWS_AT_ONCE]) for start in range(0, len(data), ROWS_AT_ONCE)]
    before = [_log_p(reference, batch, "", in_format) for batch in batches]
    after = [_log_p(teacher, batch, GUIDE, in_format) for batch in batches]
    log_r, log_t = torch.cat(before), torch.cat(after)
    divergence = (log_t.exp() * (log_t - log_r)).sum(-1)
    return {"kl_in_format": float(divergence.mean()), "kl_tokens": len(divergence)}


def _log_p(subject: Subject, batch: dict[str, torch.Tensor], prefix: str, in_format: torch.Tensor) -> torch.Tensor:
    """A batch's next-token log-probabilities among the tokens in format, (completion tokens, tokens in format)."""
    model = load_model(subject)
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[f"{prefix}{name}"].to(model.device) for name in names}
    with torch.inference_mode(), float32_head(model):
        logits, _, _ = completion_logits(model, inputs, batch["labels"].to(model.device))
        return logits[:, in_format.to(model.device)].log_softmax(-1).double().cpu()
