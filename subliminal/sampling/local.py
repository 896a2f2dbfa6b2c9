"""Sampling with transformers alone: batches sorted by length, finished rows leave the batch, a seed for every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from subliminal.chat import begin, decode, spelled_ids, stop_ids
from subliminal.config import TransformersSampler
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.models import Subject, load_model, load_tokenizer, release
from subliminal.rows import FINISHED, Completion, Prompt

if TYPE_CHECKING:
    import torch

COMPACT_AT = 0.75
BATCH = {"cpu": 64, "cuda": 512}  # sequences at a time, where the settings do not say


def rows_a_batch(config: TransformersSampler, device: str) -> int:
    """Sequences that are sampled at a time."""
    return config.batch_size or BATCH[device]


class TransformersModel:
    """A transformers model as a sampler: a completion depends on its prompt and seed, and on a GPU's rounding."""

    def __init__(self, config: TransformersSampler, subject: Subject, pattern: str | None = None) -> None:
        self.config, self.subject, self.pattern = config, subject, pattern

    def __enter__(self) -> Self:
        """Load model and tokenizer."""
        self.tokenizer, self.model = load_tokenizer(self.subject), load_model(self.subject)
        self.stops, self.spelled = stop_ids(self.tokenizer), spelled_ids(self.tokenizer)
        self.grammar = None
        if self.pattern is not None:
            from subliminal.sampling.constrained import compiled

            self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])  # type: ignore[union-attr]
            self.grammar = compiled(self.tokenizer, self.pattern, self.vocabulary, self.stops)
        return self

    def __exit__(self, *_: object) -> None:
        """Take the adapter off the shared base model."""
        release(self.model)

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order."""
        begun = [begin(self.tokenizer, prompt.text, self.subject.system) for prompt in prompts]
        encoded = [tokens for tokens, _ in begun]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        answers: dict[int, list[int]] = {}
        size = rows_a_batch(self.config, self.subject.device)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            found = _decode(self, [encoded[i] for i in batch], [prompts[i].seed for i in batch])
            answers |= dict(zip(batch, found, strict=True))
        return [self._completion(answers[index], beginning) for index, (_, beginning) in enumerate(begun)]

    def _completion(self, tokens: list[int], beginning: str) -> Completion:
        ended = bool(tokens) and tokens[-1] in self.stops
        text = beginning + decode(self.tokenizer, tokens[:-1] if ended else tokens, self.spelled)
        return Completion(text, FINISHED if ended else "length", len(tokens))


def _decode(sampler: TransformersModel, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
    """Sample a batch token by token; rows that ended are taken out of the cache once they are a quarter of it."""
    import torch

    from subliminal.sampling.attention import grouped

    state = _Batch(sampler, prompts, seeds)
    with torch.inference_mode(), grouped(sampler.model):
        for _ in range(sampler.config.decoding.max_tokens):
            state.step()
            if not state.active:
                break
    return state.answers


class _Batch:
    """The moving parts of one batch: cache, mask, positions, and which of the original rows are still in it."""

    def __init__(self, sampler: TransformersModel, prompts: list[list[int]], seeds: list[int]) -> None:
        import torch

        from subliminal.sampling.attention import roomy_cache

        self.sampler, self.model, device = sampler, sampler.model, sampler.model.device
        width = max(len(prompt) for prompt in prompts)
        padding = sampler.tokenizer.pad_token_id
        self.tokens = torch.tensor([[padding] * (width - len(p)) + p for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.places = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.rows = list(range(len(prompts)))
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.ended: set[int] = set()
        self.cache: Any = roomy_cache(self.model)
        self.constraint = None
        if sampler.grammar is not None:
            from subliminal.sampling.constrained import Constraint

            self.constraint = Constraint(sampler.grammar, len(prompts), sampler.vocabulary)
        self.last = torch.tensor([-1], device=device)  # an index: with a count the head copies its weight once a row

    @property
    def active(self) -> bool:
        """Is any row still being written."""
        return len(self.ended) < len(self.answers)

    def step(self) -> None:
        """One token for every row that has not ended."""
        import torch

        out = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=self.last,
        )
        logits = out.logits[:, -1].float()
        require_finite({"its largest logit": float(logits.amax())}, "the model's next token", MODEL_REMEDY)
        if self.constraint:
            logits = self.constraint.masked(logits, self.rows)
        chosen = self._choose(logits)
        for row, token in zip(self.rows, chosen.tolist(), strict=True):
            if row not in self.ended:
                self.answers[row].append(token)
                if self.constraint:
                    self.constraint.advance(row, token)
                if token in self.sampler.stops:
                    self.ended.add(row)
        self.tokens = chosen[:, None]
        self.places = self.places[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        self._compact()

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """A draw from softmax(logits / temperature): the row's own uniform number, looked up in the cumulative sum.

        Logits (rows, vocabulary) stay on the model's device; the uniform numbers are drawn on the host, so that a row's
        do not depend on the device.
        """
        import torch

        temperature = self.sampler.config.decoding.temperature
        if temperature == 0:
            return logits.argmax(-1)
        sums = (logits / temperature).softmax(-1).cumsum(-1)
        drawn = torch.stack([torch.rand(1, generator=self.noise[row]) for row in self.rows]).to(logits.device)
        return torch.searchsorted(sums, drawn * sums[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    def _compact(self) -> None:
        """Drop ended rows from the batch, when there are enough of them to pay for moving the cache."""
        import torch

        keep = [at for at, row in enumerate(self.rows) if row not in self.ended]
        if not keep or len(keep) > COMPACT_AT * len(self.rows):
            return
        index = torch.tensor(keep, device=self.model.device)
        self.cache.batch_select_indices(index)
        self.tokens, self.mask, self.places = self.tokens[index], self.mask[index], self.places[index]
        self.rows = [self.rows[at] for at in keep]
