"""Sampling from any OpenAI-compatible endpoint: retries, a rate limit, a budget, and a key that is never written.

Waiting and retrying after 408, 409, 429, 5xx and broken connections (with Retry-After) is the `openai` client's work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

from subliminal.chat import messages
from subliminal.config import Endpoint
from subliminal.rows import FINISHED, Completion, Prompt
from subliminal.store import SECRETS, StoreError

T = TypeVar("T")
R = TypeVar("R")

_KEPT = {"sampler": "finished shards", "judge": "written judgements"}
NO_KEY = "none"  # local servers ask for no key, the client wants some text


class EndpointError(StoreError):
    """An endpoint that can not be asked; the text says what to change and holds no key."""


class BudgetError(StoreError):
    """The next request could go over the budget; finished shards are kept."""


class ApiEndpoint:
    """A chat-completions endpoint as a sampler, `config.workers` requests at a time."""

    def __init__(self, config: Endpoint, system: str | None) -> None:
        self.config, self.system = config, system
        self.pace = Pace(config.requests_per_minute)
        self.purse = Purse(config)

    def __enter__(self) -> Self:
        """Open the connection pool."""
        try:
            from openai import OpenAI
        except ImportError:
            needed = f"{self.config.group}=api needs the openai package: pip install 'subliminal[api]'"
            raise EndpointError(needed) from None
        self.key = os.environ.get(self.config.key_env, "")
        SECRETS.add(self.config.key_env)
        if not self.key and "api.openai.com" in self.config.base_url:
            raise EndpointError(
                f"no API key: export {self.config.key_env}=..., or name another variable in {self.config.group}.key_env"
            )
        self.client = OpenAI(
            base_url=self.config.base_url,
            api_key=self.key or NO_KEY,
            max_retries=self.config.retries,
            timeout=self.config.timeout,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.client.close()

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order; the first failure cancels what has not been sent."""
        return self.each(lambda prompt: _completion(self.create(prompt.text, seed=prompt.seed)), prompts)

    def each(self, ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Ask about every item in threads; results in order, the first failure as one clear error."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            answers = [pool.submit(ask, item) for item in items]
            done, _ = wait(answers, return_when=FIRST_EXCEPTION)
            if any(answer.exception() for answer in done):
                pool.shutdown(cancel_futures=True)
        failed = [answer.exception() for answer in answers if not answer.cancelled() and answer.exception()]
        if failed:
            raise self._explained(failed[0])
        return [answer.result() for answer in answers]

    def create(self, text: str, begun: str | None = None, **more: Any) -> Any:
        """One request within pace and budget, with the reply's beginning where it is `begun`; `more` goes into it."""
        decoding = self.config.decoding
        asked: list[Any] = [*messages(text, self.system)]
        if begun is not None:
            asked.append({"role": "assistant", "content": begun})
        settings: Any = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
        }
        self.purse.check()
        self.pace.wait()
        reply = self.client.chat.completions.create(model=self.config.model, messages=asked, **settings | more)
        self.purse.pay(reply.usage)
        return reply

    def _explained(self, error: BaseException | None) -> BaseException:
        """The error with its remedy and without the key."""
        if error is None or isinstance(error, StoreError):
            return error or EndpointError("cancelled")
        text = _remedy(error, self.config)
        return EndpointError(text.replace(self.key, "***") if self.key else text)


def _completion(reply: Any) -> Completion:
    if not reply.choices:
        return Completion("", "error", 0)
    choice = reply.choices[0]
    reason = FINISHED if choice.finish_reason == "stop" else str(choice.finish_reason)
    return Completion(choice.message.content or "", reason, getattr(reply.usage, "completion_tokens", 0) or 0)


def _remedy(error: BaseException, config: Endpoint) -> str:
    import openai

    place, said, group = config.base_url, str(error).splitlines()[0][:300], config.group
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"{place} refuses the key in {config.key_env}: {said}"
        case openai.NotFoundError():
            return f"{place} does not know model {config.model!r}: {said}. Set {group}.model"
        case openai.RateLimitError():
            return (
                f"{place} still limits the rate ({config.retries} retries): {said}. Lower {group}.requests_per_minute"
            )
        case openai.APIConnectionError():
            return (
                f"{place} can not be reached ({config.retries} retries): {said}. Check {group}.base_url and the network"
            )
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return f"{place} refuses the request: {said}"
        case _:
            return f"{place} failed after {config.retries} retries: {type(error).__name__}: {said}"


class Pace:
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


class Purse:
    """What this process has spent at the endpoint, in dollars, against its budget."""

    def __init__(self, config: Endpoint) -> None:
        self.group, self.budget, self.spent, self.lock = config.group, config.budget_usd, 0.0, threading.Lock()
        self.prices = config.usd_per_million_input / 1e6, config.usd_per_million_output / 1e6
        self.ceiling, self.open = config.decoding.max_tokens * self.prices[1], 0.0

    def check(self) -> None:
        """Set the dearest possible answer aside; raises `BudgetError` when the budget could not pay for it."""
        with self.lock:
            if self.budget is not None and self.spent + self.open + self.ceiling > self.budget:
                raise BudgetError(
                    f"the budget of {self.budget:g} USD is used up ({self.spent:.4f} spent by this run); "
                    f"{_KEPT[self.group]} are kept. Raise {self.group}.budget_usd to go on"
                )
            self.open += self.ceiling

    def pay(self, usage: Any) -> None:
        """Book one reply's tokens."""
        tokens = getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0
        with self.lock:
            self.open -= self.ceiling
            self.spent += tokens[0] * self.prices[0] + tokens[1] * self.prices[1]
