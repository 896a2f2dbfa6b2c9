"""A model of this machine as the judge: the exact log-probability of every permitted answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, Self

from subliminal.chat import encode_answer, end_of_turn_id
from subliminal.config import Decoding, LocalJudge, TransformersSampler
from subliminal.evaluation.exact import FormTree, candidate_log_p, prefix_free
from subliminal.judging import Judgement, Question
from subliminal.judging.answers import chosen, refuses
from subliminal.models import Subject, load_model, load_tokenizer, release
from subliminal.reasoning import outside
from subliminal.rows import Prompt
from subliminal.sampling import open_sampler


class ModelJudge:
    """A transformers model that answers greedily, and with exact log-probabilities where the answers are given."""

    def __init__(self, config: LocalJudge, subject: Subject) -> None:
        self.config, self.subject = config, subject
        self.tree = lru_cache(maxsize=8)(self._tree)

    def __enter__(self) -> Self:
        """Load model and tokenizer."""
        self.tokenizer, self.model = load_tokenizer(self.subject), load_model(self.subject)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the shared base model as it was."""
        release(self.model)

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question, in order."""
        free = [question for question in questions if question.answers is None]
        texts = iter(self._texts(free) if free else [])
        return [next(texts) if q.answers is None else self._restricted(q.text, q.answers) for q in questions]

    def _restricted(self, text: str, answers: tuple[str, ...]) -> Judgement:
        prompt = encode_answer(self.tokenizer, text, self.subject.system)
        return chosen(dict(zip(answers, candidate_log_p(self.model, prompt, self.tree(answers)), strict=True)))

    def _tree(self, answers: tuple[str, ...]) -> FormTree:
        """The answers as tokens; where one begins another ("1", "10") each ends with the end of the turn."""
        plain = [tuple(self.tokenizer.encode(answer, add_special_tokens=False)) for answer in answers]
        ends = () if len(prefix_free(plain)) == len(plain) else (end_of_turn_id(self.tokenizer),)
        return FormTree({answer: [(*tokens, *ends)] for answer, tokens in zip(answers, plain, strict=True)})

    def _texts(self, questions: Sequence[Question]) -> list[Judgement]:
        decoding = Decoding(temperature=0.0, max_tokens=self.config.max_tokens)
        prompts = [Prompt(index, question.text, 0) for index, question in enumerate(questions)]
        with ExitStack() as opened:
            sampler: Any = opened.enter_context(open_sampler(TransformersSampler(decoding=decoding), self.subject))
            replies = [(outside(reply.text) or "").strip() for reply in sampler.sample(prompts)]
        return [Judgement(None if refuses(text) else text, refused=refuses(text)) for text in replies]
