"""Sampling from any OpenAI-compatible endpoint: retries, a rate limit, a budget, and a key that is never written.

Waiting and retrying after 408, 409, 429, 5xx and broken connections (with Retry-After) is the `openai` client's work.
A reply of status 200 that holds no answer is asked for again here, as often and with pauses as long, and is then a
failure; what counts as an answer is in `replies`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, Self, TypeVar

from subliminal.addresses import without_query
from subliminal.chat import messages
from subliminal.config import Endpoint
from subliminal.progress import say
from subliminal.rows import Completion, Prompt
from subliminal.sampling.failures import explain, is_filter, without_key
from subliminal.sampling.finish import CUT, UNKNOWN, is_known
from subliminal.sampling.replies import Reply, ReplyError, Usage, parsed, reply_of, usage_of
from subliminal.store import SECRETS, Json, StoreError
from subliminal.user_files import well_formed

T = TypeVar("T")
R = TypeVar("R")

NO_KEY = "none"  # local servers ask for no key, the client wants some text
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_DEMAND = 0.5, 8.0, 120.0  # seconds between tries: the client's own
TEMPLATE_TOKENS = 256  # that a chat template may add to a prompt, at most

log = logging.getLogger(__name__)
_SAID: set[str] = set()
_SAID_LOCK = threading.Lock()


class EndpointError(StoreError):
    """An endpoint that gives no answer; the text says what to change and holds no key.

    `answered` has what other requests of the same call brought, by their place in it: it is paid for.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.answered: dict[int, Any] = {}


class BudgetError(EndpointError):
    """The next request could go over the budget; what is answered is kept."""


@dataclass(frozen=True)
class _Sent:
    """What came back for a request, and how often the client itself tried again before."""

    content: bytes
    headers: Mapping[str, str]
    retries: int


class ApiEndpoint:
    """A chat-completions endpoint as a sampler, `config.workers` requests at a time."""

    def __init__(self, config: Endpoint, system: str | None) -> None:
        self.config, self.system = config, system
        self.rate_limit, self.budget = RateLimit(config.requests_per_minute), Budget(config)

    def __enter__(self) -> Self:
        """Open the connection pool."""
        try:
            from openai import OpenAI
        except ImportError:
            needed = f"{self.config.group}=api needs the openai package: pip install 'subliminal[api]'"
            raise EndpointError(needed) from None
        self.key = _key(self.config)
        _quiet_requests()
        address, query = without_query(self.config.base_url)
        self.client = OpenAI(
            base_url=address,
            default_query=query,
            api_key=self.key or NO_KEY,
            max_retries=self.config.retries,
            timeout=self.config.timeout,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.client.close()

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order; the first failure cancels what has not been sent.

        A completion without text is one only where the reply says why there is none: `replies.reply_of`.
        """
        return self.each(lambda prompt: self.create(prompt.text, self._completion, seed=prompt.seed), prompts)

    def each(self, ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Ask about every item in threads; results in order, the first failure as one clear error."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            answers = [pool.submit(ask, item) for item in items]
            done, _ = wait(answers, return_when=FIRST_EXCEPTION)
            if any(answer.exception() for answer in done):
                pool.shutdown(cancel_futures=True)
        sent = {place: answer for place, answer in enumerate(answers) if not answer.cancelled()}
        failed = next((error for answer in sent.values() if (error := answer.exception())), None)
        if failed:
            error = self._explained(failed)
            error.answered = {place: answer.result() for place, answer in sent.items() if not answer.exception()}
            raise error
        return [answer.result() for answer in answers]

    def create(self, text: str, read: Callable[[Json], R], begun: str | None = None, **more: Any) -> R:
        """What `read` finds in the reply to one request, within rate limit and budget; `more` goes into the request.

        With `begun` the model goes on from that beginning of its reply. A `ReplyError` of `read` is asked again, then
        raised, or replaced by what it says holds instead.
        """
        request, retries, requests = self._request(text, begun, more), self.config.retries, 0
        for tries in count(1):
            sent = self._send(request, retries)
            retries, requests = retries - sent.retries, requests + sent.retries + 1
            try:
                return read(parsed(sent.content))
            except ReplyError as error:
                if retries > 0 and (error.retries is None or tries <= error.retries):
                    pause = _pause(tries, sent.headers)
                    log.info("No answer: %s. Asking again in %.1f seconds", error, pause)
                    retries -= 1
                    time.sleep(pause)
                elif error.instead is not None:
                    return error.instead
                else:
                    raise EndpointError(explain(error, self.config, requests, self.key)) from None
        raise AssertionError("a request is answered or fails")

    def _request(self, text: str, begun: str | None, more: Mapping[str, Any]) -> Json:
        """The request's JSON, with the endpoint's own names for its fields."""
        chat: list[Json] = [turn | {"content": well_formed(turn["content"])} for turn in messages(text, self.system)]
        if begun is not None:
            chat.append({"role": "assistant", "content": begun})
        config, decoding = self.config, self.config.decoding
        ours = {name: getattr(decoding, name) for name in ("temperature", "top_p", "max_tokens")} | dict(more)
        fields = {config.rename.get(name, name): value for name, value in ours.items() if name not in config.omit}
        return {"model": config.model, "messages": chat, **fields, **config.extra}

    def _send(self, request: Json, retries: int) -> _Sent:
        """Send one request within rate limit and budget; the client itself tries it again up to `retries` times."""
        import openai

        client = self.client if retries == self.config.retries else self.client.with_options(max_retries=retries)
        further = {name: value for name, value in request.items() if name not in ("model", "messages")}
        reserved = self.budget.reserve(request["messages"])
        try:
            self.rate_limit.wait()
            reply: Any = client.chat.completions.with_raw_response.create(
                model=request["model"], messages=request["messages"], extra_body=further
            )
        except openai.APIStatusError as error:
            self.budget.release(reserved)
            if not is_filter(error):
                raise
            return _Sent(error.response.content, error.response.headers, 0)
        except BaseException:
            self.budget.release(reserved)
            raise
        self.budget.pay(reserved, _usage(reply.content))
        return _Sent(without_key(reply.content, self.key), reply.headers, reply.retries_taken)

    def _completion(self, body: Json) -> Completion:
        reply = self.reply(body)
        return Completion(reply.text, reply.finish_reason, reply.tokens or 0)

    def reply(self, body: Json) -> Reply:
        """The answer in a body; says once what is odd about this endpoint's answers."""
        reply, place, limit = reply_of(body, self.config.limit), self.config.base_url, self.config.decoding.max_tokens
        if not is_known(reply.finish_reason):
            _say_once(f"  {place}: finish_reason {reply.finish_reason!r} is not known and counts as unfinished")
        if reply.finish_reason == UNKNOWN:
            _say_once(f"  {place} says neither why an answer ended nor how many tokens it has: it counts as unfinished")
        if reply.finish_reason == CUT and not reply.text:
            _say_once(
                f"  {place}: reasoning used up {self.config.group}.decoding.max_tokens={limit} before there was any "
                "answer; such answers count as unfinished"
            )
        return reply

    def _explained(self, error: BaseException) -> EndpointError:
        """The error with its remedy and without the key."""
        if isinstance(error, EndpointError):
            return error
        return EndpointError(explain(error, self.config, key=self.key))


def _key(config: Endpoint) -> str:
    """The key from the environment; raises `EndpointError` where it is missing or can not be sent."""
    SECRETS.add(config.key_env)
    key = os.environ.get(config.key_env, "").strip()
    if not key and "api.openai.com" in config.base_url:
        raise EndpointError(
            f"no API key: export {config.key_env}=..., or name another variable in {config.group}.key_env"
        )
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"the key in {config.key_env} holds characters that no key has; export it again")
    return key


def _quiet_requests() -> None:
    """No line for each request where Hydra shows INFO; what the user sets (hydra.verbose) stays."""
    for name in ("httpx", "httpx2"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET and logger.getEffectiveLevel() >= logging.INFO:
            logger.setLevel(logging.WARNING)


def _pause(tries: int, headers: Mapping[str, str]) -> float:
    """Seconds before the next try: what the endpoint demands, else twice as long each time, as the client does it."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            demanded = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < demanded <= LONGEST_DEMAND:
            return demanded
    return min(FIRST_PAUSE * 2.0 ** (tries - 1), LONGEST_PAUSE) * random.uniform(0.75, 1)


def _usage(content: bytes) -> Usage | None:
    """What a reply is paid by, whether or not it holds an answer."""
    try:
        return usage_of(parsed(content))
    except ReplyError:
        return None


def _say_once(text: str) -> None:
    """`say` what was not said before in this process."""
    with _SAID_LOCK:
        new = text not in _SAID
        _SAID.add(text)
    if new:
        say(text)


class RateLimit:
    """At most `per_minute` starts a minute, evenly spaced, over all threads that share it."""

    def __init__(
        self, per_minute: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.interval, self.clock, self.sleep = 60.0 / per_minute, clock, sleep
        self.lock, self.next = threading.Lock(), clock()

    def wait(self) -> None:
        """Sleep until this caller's turn."""
        with self.lock:
            turn = max(self.next, self.clock())
            self.next = turn + self.interval
        self.sleep(max(0.0, turn - self.clock()))


class Budget:
    """What this process has spent at the endpoint, in dollars, against the budget.

    Before a request the dearest possible reply is reserved: as many prompt tokens as the prompt has bytes, and as many
    new ones as it may have. Without believable token counts a reply is charged that much.
    """

    def __init__(self, config: Endpoint) -> None:
        self.config, self.lock = config, threading.Lock()
        self.spent, self.reserved = 0.0, 0.0
        self.prices = config.usd_per_million_input / 1e6, config.usd_per_million_output / 1e6

    def reserve(self, chat: Sequence[Mapping[str, str]]) -> float:
        """Set the dearest possible reply aside; raises `BudgetError` when the budget could not pay for it."""
        group, budget = self.config.group, self.config.budget_usd
        prompt = sum(len(turn["content"].encode()) for turn in chat) + TEMPLATE_TOKENS
        dearest = prompt * self.prices[0] + (self.config.limit or 0) * self.prices[1]
        with self.lock:
            if budget is not None and self.spent + self.reserved + dearest > budget:
                raise BudgetError(
                    f"the budget of {budget:g} USD is used up ({self.spent:.4f} spent by this run); what is answered "
                    f"is kept. Raise {group}.budget_usd to go on"
                )
            self.reserved += dearest
        return dearest

    def release(self, reserved: float) -> None:
        """Give back what was set aside for a request that was not answered."""
        with self.lock:
            self.reserved -= reserved

    def pay(self, reserved: float, usage: Usage | None) -> None:
        """Book one reply's tokens; without believable counts what was set aside."""
        cost = usage.prompt * self.prices[0] + usage.completion * self.prices[1] if usage else reserved
        with self.lock:
            self.reserved -= reserved
            self.spent += cost
        if usage is None and self.config.budget_usd is not None:
            _say_once(
                f"  {self.config.base_url} sends replies without believable token counts: for the budget each counts "
                f"as the dearest possible, {reserved:.2g} USD"
            )
