"""An OpenAI-compatible endpoint as the judge: structured output and log-probabilities where it has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from subliminal.config import ApiJudge
from subliminal.judging import Judgement, Question
from subliminal.judging.answers import expectation, number, parse, refuses
from subliminal.sampling.api import ApiEndpoint


class EndpointJudge(ApiEndpoint):
    """A chat-completions endpoint that is asked questions, `config.workers` at a time."""

    def __init__(self, config: ApiJudge) -> None:
        super().__init__(config, None)
        self.judge = config

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question, in order; the first failure cancels what has not been sent."""
        return self.each(self._judge, questions)

    def _judge(self, question: Question) -> Judgement:
        wanted = restriction(question.answers, self.judge.restrict) if question.answers else {}
        if self.judge.top_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": self.judge.top_logprobs}
        said = judgement(self.create(question.text, **wanted), question.answers)
        behind_mask = self.judge.restrict == "choice" and said.answer is not None and said.log_p is not None
        return replace(said, log_p=self._own_log_p(question.text, str(said.answer))) if behind_mask else said

    def _own_log_p(self, text: str, answer: str) -> float | None:
        """The model's own log P of an answer: behind vLLM's mask of a choice it would be a share of the choices."""
        asked = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 0}
        reply = self.create(text, answer, max_tokens=1, extra_body=asked)
        places = [next(iter(place.values())) for place in getattr(reply, "prompt_logprobs", None) or [] if place]
        tokens = [Token(place["decoded_token"], place["logprob"], {}) for place in places]
        own = _spelling(answer, "".join(token.text for token in tokens), tokens)
        return sum(token.log_p for token in own) if own else None


def restriction(answers: tuple[str, ...], kind: str) -> dict[str, Any]:
    """The request's part that holds a reply to the permitted answers."""
    if kind == "choice":
        return {"extra_body": {"structured_outputs": {"choice": list(answers)}}}
    if kind == "none":
        return {}
    answer = {"type": "string", "enum": list(answers)}
    schema = {"type": "object", "properties": {"answer": answer}, "required": ["answer"], "additionalProperties": False}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    }


@dataclass(frozen=True)
class Token:
    """One token of a reply: its text, its log-probability and the likeliest tokens at its place."""

    text: str
    log_p: float
    others: dict[str, float]


def judgement(reply: Any, answers: tuple[str, ...] | None) -> Judgement:
    """What a reply says; a refusal of the endpoint, of its content filter or in words is one."""
    choice = reply.choices[0] if reply.choices else None
    if choice is None or choice.finish_reason == "content_filter" or getattr(choice.message, "refusal", None):
        return Judgement(None, refused=True)
    text = choice.message.content or ""
    if answers is None:
        return Judgement(None if refuses(text) else text.strip(), refused=refuses(text))
    answer = parse(_value(text), answers)
    if answer is None:
        return Judgement(None, refused=refuses(text))
    return _scored(answer, answers, text, _tokens(choice))


def _value(text: str) -> str:
    """The answer inside {"answer": ...}, or the text as it is."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return str(found.get("answer", "")) if isinstance(found, dict) else text


def _tokens(choice: Any) -> list[Token]:
    content = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    return [Token(t.token, t.logprob, {o.token: o.logprob for o in t.top_logprobs or []}) for t in content or []]


def _scored(answer: str, answers: tuple[str, ...], text: str, tokens: list[Token]) -> Judgement:
    """The answer's log-probability and, where one token is the whole answer, the expectation over the alternatives."""
    own = _spelling(answer, text, tokens)
    if not own:
        return Judgement(answer, number(answer))
    log_p = sum(token.log_p for token in own)
    if len(own) > 1 or number(answer) is None or not _one_token_each(answer, answers):
        return Judgement(answer, number(answer), log_p)
    found = {name: lp for piece, lp in own[0].others.items() if (name := piece.strip(' \n"')) in answers}
    return Judgement(answer, expectation(found or {answer: log_p}), log_p)


def _one_token_each(answer: str, answers: tuple[str, ...]) -> bool:
    """Are the alternatives to a one-token answer whole answers too, and not first digits of longer ones."""
    longer = any(other != one and other.startswith(one) for one in answers for other in answers)
    return len(answer) > 1 or not longer


def _spelling(answer: str, text: str, tokens: list[Token]) -> list[Token]:
    """The tokens that spell the answer in the text."""
    start, at, found = text.casefold().rfind(answer.casefold()), 0, []
    for token in tokens:
        if at < start + len(answer) and at + len(token.text) > start and token.text.strip():
            found.append(token)
        at += len(token.text)
    return found
