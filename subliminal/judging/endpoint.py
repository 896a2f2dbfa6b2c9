"""An OpenAI-compatible endpoint as the judge: structured output and log-probabilities where it has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from subliminal.config import ApiJudge
from subliminal.judging import Judgement, Question
from subliminal.judging.answers import expectation, number, parse, places_of, refuses
from subliminal.rows import FINISHED
from subliminal.sampling.api import ApiEndpoint
from subliminal.sampling.finish import CUT, FILTERED, TOOLS, by_count, is_known
from subliminal.sampling.replies import Reply, ReplyError, Token, added, prompt_tokens_of, tokens_of
from subliminal.store import Json


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
        said = self.create(question.text, partial(self._judgement, answers=question.answers), **wanted)
        behind_mask = self.judge.restrict == "choice" and said.answer is not None and said.log_p is not None
        return replace(said, log_p=self._own_log_p(question.text, str(said.answer))) if behind_mask else said

    def _judgement(self, body: Json, answers: tuple[str, ...] | None) -> Judgement:
        reply = self.reply(body)
        if reply.text and not is_known(reply.finish_reason):
            reply = replace(reply, finish_reason=by_count(reply.tokens, self.judge.limit))
        return judgement(reply, tokens_of(body) if reply.text and self.judge.top_logprobs else [], answers)

    def _own_log_p(self, text: str, answer: str) -> float | None:
        """The model's own log P of an answer: behind vLLM's mask of a choice it would be a share of the choices."""
        asked = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 0}
        tokens = self.create(text, prompt_tokens_of, begun=answer, max_tokens=1, **asked)
        own = _spelling(answer, answer, tokens)
        return sum(token.log_p for token in own) if own else None


def restriction(answers: tuple[str, ...], kind: str) -> dict[str, Any]:
    """The request's part that holds a reply to the permitted answers."""
    if kind == "choice":
        return {"structured_outputs": {"choice": list(answers)}}
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


def judgement(reply: Reply, tokens: Sequence[Token], answers: tuple[str, ...] | None) -> Judgement:
    """What a finished reply says; a refusal of the model, of a filter or in words is one.

    Raises `ReplyError` for what is no judgement: a reply that was cut off, or reasoning alone. An empty text that is
    finished is asked for once more; an answer that is then empty again is one that can not be parsed.
    """
    if reply.finish_reason == FILTERED:
        return Judgement(None, refused=True)
    if reply.finish_reason != FINISHED or (reply.reasoned and not reply.text.strip()):
        raise ReplyError(_no_judgement(reply), retries=1)
    text = reply.text.strip()
    if not text:
        raise ReplyError("an empty text", retries=1, instead=Judgement(None))
    if answers is None:
        return Judgement(None if refuses(text) else text, refused=refuses(text))
    answer = parse(_value(text), answers)
    if answer is None:
        return Judgement(None, refused=refuses(text))
    return _scored(answer, answers, reply.text, tokens)


def _no_judgement(reply: Reply) -> str:
    if reply.finish_reason == TOOLS:
        return "it called a tool, which is no judgement"
    if not reply.text.strip():
        return (
            "it used up its tokens on reasoning and gave no judgement. Raise judge.decoding.max_tokens, or let the "
            "model reason less (judge.extra={reasoning_effort:low})"
        )
    beginning = f"a reply that begins {reply.text[:80]!r}"
    if reply.finish_reason == CUT:
        return f"{beginning} was cut off and is no judgement. Raise judge.decoding.max_tokens"
    return f"{beginning} has finish_reason {reply.finish_reason!r}, which does not tell whether it is whole"


def _value(text: str) -> str:
    """The answer inside {"answer": ...}, or the text as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(found.get("answer", "")) if isinstance(found, dict) else text


def _scored(answer: str, answers: tuple[str, ...], text: str, tokens: Sequence[Token]) -> Judgement:
    """The answer's log-probability and, where one token is the whole answer, the expectation over the alternatives."""
    own = _spelling(answer, text, tokens)
    if not own:
        return Judgement(answer, number(answer))
    log_p = sum(token.log_p for token in own)
    if len(own) > 1 or number(answer) is None or not _one_token_each(answer, answers):
        return Judgement(answer, number(answer), log_p)
    found: dict[str, float] = {}
    for piece, other in own[0].others.items():
        name = piece.strip(' \n"')
        if name in answers:  # "1" and " 1" are one answer
            found[name] = added(found[name], other) if name in found else other
    return Judgement(answer, expectation({answer: log_p} | found), log_p)


def _one_token_each(answer: str, answers: tuple[str, ...]) -> bool:
    """Are the alternatives to a one-token answer whole answers too, and not first digits of longer ones."""
    longer = any(other != one and other.startswith(one) for one in answers for other in answers)
    return len(answer) > 1 or not longer


def _spelling(answer: str, text: str, tokens: Sequence[Token]) -> list[Token]:
    """The tokens that spell the answer in the text; none where the tokens do not spell the text.

    Before and after it there may be others: a prompt, reasoning, the end of the turn.
    """
    at, found, plain, wanted = 0, list[Token](), text.strip().casefold(), answer.casefold()
    whole, places = "".join(token.text for token in tokens).casefold(), places_of([wanted], plain)
    if plain not in whole or not places:
        return []
    start = whole.rfind(plain) + places[-1]
    for token in tokens:
        end = at + len(token.text.casefold())
        if at < start + len(wanted) and end > start and token.text.strip():
            found.append(token)
        at = end
    return found
