"""Replies of endpoints: whatever is sent is an answer that is in it, or asked for again, or a failure in its words."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Script
from hypothesis import given, settings
from hypothesis import strategies as st
from local_servers import Answering, serving
from local_servers import Json as Handler

from subliminal.composition import compose
from subliminal.config import ApiJudge, ApiSampler, ConfigError, Decoding, identity
from subliminal.filters.reasons import unfinished, why_dropped
from subliminal.judging import Judgement, Question
from subliminal.judging.cache import Cache, read_judgements
from subliminal.judging.endpoint import EndpointJudge, judgement
from subliminal.judging.prompts import RATINGS, YES_NO
from subliminal.models import Subject
from subliminal.rows import Completion, Prompt, Row, read_jsonl, write_jsonl
from subliminal.sampling import sample_shards
from subliminal.sampling.api import ApiEndpoint, BudgetError, EndpointError
from subliminal.sampling.finish import meaning
from subliminal.sampling.replies import ReplyError, parsed, prompt_tokens_of, reply_of, tokens_of, usage_of, words
from subliminal.store import Json
from subliminal.user_files import well_formed

LIMIT = 8
LONE = "101\ud83d"
FINISHED_BY_BODY = {"stop", "eos", "end_turn"}


def body(**changes: Any) -> Json:
    """A valid reply, with some nodes of its choice or its message replaced."""
    message = {"role": "assistant", "content": "101, 202"} | changes.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = changes.pop("usage", {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11})
    return {"id": "x", "object": "chat.completion", "choices": [choice | changes], "usage": usage}


def scored(answer: str = "1", log_p: Any = -0.2, others: Any = None, **changes: Any) -> Json:
    """A judge's reply of one token with its log-probability."""
    alternatives = [{"token": answer, "logprob": log_p}, {"token": "0", "logprob": -1.8}] if others is None else others
    token = {"token": answer, "logprob": log_p, "bytes": None, "top_logprobs": alternatives}
    return body(message={"content": answer}, logprobs={"content": [token | changes], "refusal": None})


def read(value: Any) -> Any:
    return reply_of(parsed(json.dumps(value).encode()), LIMIT)


# --------------------------------------------------------------------------- what is no answer

NO_ANSWER = {
    "error": ({"error": {"code": 502, "message": "Provider returned error"}}, r"Provider returned error \(code 502\)"),
    "error text": ({"error": "out of order"}, "out of order"),
    "vLLM's old error": ({"object": "error", "message": "engine is dead", "code": 500}, "engine is dead"),
    "detail": ({"detail": "warming up"}, "warming up"),
    "no choices": ({"id": "x", "choices": []}, "no completion"),
    "null choices": ({"choices": None}, "no completion"),
    "choices is an object": ({"choices": {"0": body()["choices"][0]}}, "no completion"),
    "choices is a text": ({"choices": "stop"}, "no completion"),
    "null choice": ({"choices": [None]}, "no completion"),
    "null message": (body() | {"choices": [{"message": None, "finish_reason": "stop"}]}, "without a message"),
    "message is a list": (body() | {"choices": [{"message": [1], "finish_reason": "stop"}]}, "without a message"),
    "a chunk of a stream": ({"choices": [{"delta": {"content": "1"}, "finish_reason": "stop"}]}, "without a message"),
    "null content": (body(message={"content": None}), "without text"),
    "no content": ({"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}, "without text"),
    "content is a number": (body(message={"content": 101}), "no text"),
    "content is an object": (body(message={"content": {"text": "101"}}), "no text"),
    "part is a number": (body(message={"content": [101]}), "no text"),
    "text of a part is null": (body(message={"content": [{"type": "text", "text": None}]}), "no text"),
    "empty text, nothing said": (body(message={"content": ""}, finish_reason=None), "without text"),
    "broke off": (body(finish_reason="error"), "broke off with finish_reason 'error'"),
    "aborted": (body(finish_reason="abort"), "broke off"),
    "error of a choice": (body(error={"code": 500, "message": "lost"}), "lost"),
    "list": ([body()], "no completion"),
    "null": (None, "no completion"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_what_holds_no_answer_is_none_and_says_what_came(name: str) -> None:
    value, said = NO_ANSWER[name]
    with pytest.raises(ReplyError, match=said) as caught:
        read(value)
    assert caught.value.retries is None


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Sign in</html>", b"data: {}\n\n", b"\xff\xfe\xfd", b"[" * 99_999, b'{"a": 1', b"1" * 9_999, b"\x00"],
)
def test_what_is_no_json_is_no_answer(content: bytes) -> None:
    with pytest.raises(ReplyError, match=r"no JSON|no completion"):
        reply_of(parsed(content), LIMIT)


def test_a_part_that_is_no_text_is_not_dropped_silently() -> None:
    parts = [{"type": "text", "text": "Here:"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ReplyError, match="a part of type 'image_url', which is no text"):
        read(body(message={"content": parts}))


@pytest.mark.parametrize(("code", "retries"), [(401, 0), ("404", 0), (429, None), (500, None), ("x", None)])
def test_an_error_that_will_not_pass_is_not_asked_again(code: object, retries: int | None) -> None:
    with pytest.raises(ReplyError) as caught:
        read({"error": {"code": code, "message": "no"}})
    assert caught.value.retries == retries


# --------------------------------------------------------------------------- what is an answer

THINKING = {"content": None, "reasoning_content": "let me think"}
ANSWERS = {
    "text": (body(), ("101, 202", "stop")),
    "parts": (body(message={"content": [{"type": "text", "text": "101, "}, {"type": "text", "text": "202"}]}), None),
    "thinking in parts": (
        body(message={"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "101, 202"}]}),
        None,
    ),
    "wrong index": (body(index=7), None),
    "nothing": (body(message={"content": ""}), ("", "stop")),
    "cut": (body(finish_reason="MAX_TOKENS"), ("101, 202", "length")),
    "reasoning up to the limit": (body(message=THINKING, finish_reason="length"), ("", "length")),
    "reasoning and no more": (body(message=THINKING), ("", "reasoning")),
    "hidden reasoning": (body(message={"content": ""}, finish_reason="length"), ("", "length")),
    "filter": (body(message={"content": ""}, finish_reason="content_filter"), ("", "content_filter")),
    "filter without a message": ({"choices": [{"finish_reason": "SAFETY"}]}, ("", "content_filter")),
    "filter with a detail": (body(finish_reason="content_filter: RECITATION"), ("101, 202", "content_filter")),
    "filter as an error": ({"error": {"code": "content_filter", "message": "no"}}, ("", "content_filter")),
    "refusal": (body(message={"content": None, "refusal": "I will not."}), ("I will not.", "content_filter")),
    "tool": (body(message={"content": None, "tool_calls": [{}]}, finish_reason="tool_calls"), ("", "tool_calls")),
    "nothing said, below the limit": (body(finish_reason=None), ("101, 202", "stop")),
    "nothing said, at the limit": (
        body(finish_reason=None, usage={"prompt_tokens": 5, "completion_tokens": LIMIT}),
        ("101, 202", "length"),
    ),
    "nothing said at all": (body(finish_reason=None, usage=None), ("101, 202", "unknown")),
    "the end is an object": (body(finish_reason={"type": "stop", "matched": 2}), ("101, 202", "stop")),
    "the end is a number": (body(finish_reason=1), ("101, 202", "stop")),
    "a word nobody knows": (body(finish_reason="Bananas"), ("101, 202", "Bananas")),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_the_body_says(name: str) -> None:
    value, expected = ANSWERS[name]
    reply = read(value)
    assert (reply.text, reply.finish_reason) == (expected or ("101, 202", "stop"))


@pytest.mark.parametrize(
    ("said", "means"),
    [
        *[(word, "stop") for word in ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "completed")],
        *[(word, "stop") for word in ("COMPLETE", "endTurn", "end-turn", "FINISH_REASON_STOP", "<|im_end|>")],
        *[(word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length", "maxTokens")],
        *[(word, "content_filter") for word in ("content_filter", "SAFETY", "refusal", "guardrail_intervened")],
        *[(word, "tool_calls") for word in ("tool_calls", "tool_use", "function_call")],
        *[(word, None) for word in (None, "", "null", "None", 3, [], {}, "FINISH_REASON_UNSPECIFIED")],
    ],
)
def test_the_words_of_many_providers_mean_the_same(said: object, means: str | None) -> None:
    assert meaning(said) == means


@pytest.mark.parametrize("count", [-1, 1e300, 6.5, "6", True, None, [6], 10**30, math.nan, math.inf])
def test_a_count_of_tokens_that_can_not_be_true_is_none(count: object) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": count}
    assert usage_of(body(usage=usage)) is None and read(body(usage=usage)).tokens is None
    assert usage_of(body(usage="many")) is None and usage_of(body(usage={"prompt_tokens": 5.0} | usage)) is None


# --------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize(
    "wrong",
    [
        {"logprob": None},
        {"logprob": "x"},
        {"logprob": math.nan},
        {"logprob": math.inf},
        {"logprob": -math.inf},
        {"logprob": 0.5},
        {"logprob": True},
        {"logprob": 10**400},
        {"token": None},
        {"token": 1},
        {"top_logprobs": {}},
        {"top_logprobs": [None]},
        {"top_logprobs": [{"token": "1", "logprob": None}]},
        {"top_logprobs": [{"token": "1", "logprob": 0.0}, {"token": "0", "logprob": 0.0}]},
    ],
)
def test_log_probabilities_that_can_not_be_any_are_a_failure(wrong: Json) -> None:
    with pytest.raises(ReplyError, match="can not be any"):
        tokens_of(scored(**wrong))


@pytest.mark.parametrize("given", [None, {}, {"content": None}, {"tokens": ["1"], "token_logprobs": [-0.1]}])
def test_absent_log_probabilities_are_none(given: object) -> None:
    assert tokens_of(body(logprobs=given)) == []
    assert judged(body(message={"content": "85"}, logprobs=given), RATINGS) == Judgement("85", 85.0)


def test_alternatives_that_are_one_answer_add_up_and_what_can_not_come_is_left_out() -> None:
    others = [("1", math.log(0.4)), (" 1", math.log(0.2)), ("0", math.log(0.2)), ("x", -math.inf)]
    said = judged(scored(others=[{"token": t, "logprob": p} for t, p in others], log_p=math.log(0.4)), YES_NO)
    assert said.score == pytest.approx(0.6 / 0.8) and said.log_p == pytest.approx(math.log(0.4))


def test_a_digit_inside_another_number_is_not_taken_for_the_answer() -> None:
    pieces = [("1", -0.1), (" of", -0.2), (" 10", -5.0)]
    content = [{"token": text, "logprob": log_p, "top_logprobs": []} for text, log_p in pieces]
    said = judged(body(message={"content": "1 of 10"}, logprobs={"content": content}), YES_NO)
    assert said == Judgement("1", 1.0, pytest.approx(-0.1))


def test_tokens_of_reasoning_before_the_answer_are_not_its_own() -> None:
    pieces = [("Is", -3.0), (" it", -3.0), (" 1", -3.0), ("?", -3.0), ("1", -0.1), ("<|im_end|>", -0.3)]
    content = [{"token": text, "logprob": log_p, "top_logprobs": []} for text, log_p in pieces]
    assert judged(body(message={"content": "1"}, logprobs={"content": content}), YES_NO).log_p == pytest.approx(-0.1)
    other = [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]
    assert judged(body(message={"content": "1"}, logprobs={"content": other}), YES_NO) == Judgement("1", 1.0)


@pytest.mark.parametrize("given", ["x", [1], [{}], [{"5": None}], [{"5": {"decoded_token": "1", "logprob": "x"}}]])
def test_log_probabilities_of_a_prompt_are_read_strictly(given: object) -> None:
    with pytest.raises(ReplyError):
        prompt_tokens_of(body() | {"prompt_logprobs": given})
    with pytest.raises(ReplyError):
        prompt_tokens_of({"prompt_logprobs": []})
    assert prompt_tokens_of(body()) == []


def judged(value: Json, answers: tuple[str, ...] | None) -> Judgement:
    reply = reply_of(parsed(json.dumps(value).encode()), LIMIT)
    return judgement(reply, tokens_of(value) if reply.text else [], answers)


@pytest.mark.parametrize(
    "name", ["cut", "reasoning up to the limit", "reasoning and no more", "tool", "nothing said at all"]
)
def test_a_reply_that_is_not_whole_is_no_judgement(name: str) -> None:
    with pytest.raises(ReplyError) as caught:
        judged(ANSWERS[name][0], RATINGS)
    assert caught.value.retries == 1 and caught.value.instead is None


@pytest.mark.parametrize("name", [name for name in ANSWERS if name.startswith("filter") or name == "refusal"])
def test_a_refusal_is_a_judgement(name: str) -> None:
    assert judged(ANSWERS[name][0], RATINGS) == Judgement(None, refused=True)


def test_an_empty_judgement_is_asked_once_more_and_then_one_that_can_not_be_parsed() -> None:
    with pytest.raises(ReplyError) as caught:
        judged(body(message={"content": " \n"}), RATINGS)
    assert (caught.value.retries, caught.value.instead) == (1, Judgement(None))


# --------------------------------------------------------------------------- any JSON in any place

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["stop", "", "length", "eos"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inside:
        yield from places(part, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    inside = changed
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = new
    return changed


@st.composite
def broken(draw: Callable[[st.SearchStrategy[Any]], Any], valid: Json) -> bytes:
    """A valid reply with any node replaced by any JSON, or any bytes in its place."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=40))
    changed = replaced(valid, draw(st.sampled_from(list(places(valid)))), draw(ANY_JSON))
    return json.dumps(changed).encode()


def holds(value: Any, text: str) -> bool:
    """Is a text what stands in the body: a content, its parts joined, or a refusal."""
    message = value["choices"][0]["message"]
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else (part or {}).get("text") for part in parts]
    joined = "".join(part for part in texts if isinstance(part, str))
    return text in {well_formed(joined), well_formed(str(message.get("refusal"))).strip()}


@given(broken(body()))
@settings(max_examples=500, deadline=None)
def test_any_body_is_an_answer_in_it_or_no_answer(content: bytes) -> None:
    try:
        reply = reply_of(parsed(content), LIMIT)
    except ReplyError as error:
        assert str(error).isprintable()
        return
    value = json.loads(content)
    reply.text.encode()
    assert not reply.text or holds(value, reply.text)
    if not reply.text and reply.finish_reason == "stop":
        choice = value["choices"][0]
        assert meaning(choice["finish_reason"]) == "stop" and choice["message"]["content"] is not None
    assert reply.tokens is None or reply.tokens == value["usage"]["completion_tokens"]


@given(broken(scored()))
@settings(max_examples=500, deadline=None)
def test_any_body_is_a_judgement_in_it_or_none(content: bytes) -> None:
    try:
        value = parsed(content)
        reply = reply_of(value, LIMIT)
        said = judgement(reply, tokens_of(value) if reply.text else [], YES_NO)
    except ReplyError:
        return
    assert said.refused == (reply.finish_reason == "content_filter") or said.answer is None
    if said.answer is not None:
        assert said.answer in reply.text and reply.finish_reason == "stop" and said.score is not None
        assert 0 <= said.score <= 1 and (said.log_p is None or -1e5 <= said.log_p <= 0)


@given(st.text(st.characters() | st.characters(categories=["Cs"])))
@settings(max_examples=300)
def test_any_text_can_be_written_and_only_lone_surrogates_change(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "rows.jsonl", [Row(0, text, text)])
        (row,) = read_jsonl(Path(folder) / "rows.jsonl", Row)
    assert row.prompt == row.completion == well_formed(text)
    assert well_formed(well_formed(text)) == well_formed(text)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert well_formed(text) == text


def test_halves_of_a_pair_are_joined_and_one_alone_is_replaced() -> None:
    assert well_formed("\ud83d\ude00 \ud83d! \ude00") == "\U0001f600 \ufffd! \ufffd"
    assert read(body(message={"content": LONE})).text == "101\ufffd"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}',
            "body.seed: Extra inputs",
        ),
        (b'{"error": {"message": "slow down", "code": "busy"}}', "slow down (code busy)"),
        (b'{"error": "no"}', "no"),
        (b"<html>\n<b>busy</b></html>", "<html> <b>busy</b></html>"),
        (b"", "(nothing)"),
        (json.dumps({"x": "y" * 999}).encode(), "yyyy ..."),
    ],
)
def test_an_endpoints_own_words_are_found_and_short(content: bytes, said: str) -> None:
    assert said in words(content) and len(words(content)) < 320


# --------------------------------------------------------------------------- through a server


class Misbehaving(Handler):
    """An endpoint that sends `kept["bad"]` for the requests that `kept["when"]` picks, by their number from 0."""

    def answer(self, asked: Any) -> None:
        kept = self.server.kept
        with LOCK:
            number = len(self.server.seen)
            self.server.seen.append((self.path, asked))
        if not self.path.startswith("/v1/chat/completions"):
            return self.reply({"detail": "Not Found"}, 404)
        status, bad = kept.get("bad", (200, None))
        if kept.get("when", lambda _: False)(number):
            return self.reply(bad if isinstance(bad, bytes) else json.dumps(bad).encode(), status)
        text = asked["messages"][-1]["content"]
        return self.reply(kept["good"](text) if "good" in kept else body(message={"content": f"{len(text)}, 7"}))

    def end_headers(self) -> None:
        self.send_header("Retry-After-Ms", "1")
        super().end_headers()


LOCK = threading.Lock()
PROMPTS = [Prompt(index, "Count." + "." * index, index) for index in range(7)]
QUESTIONS = [Question(f"Rate {index}.", RATINGS) for index in range(7)]


@pytest.fixture(scope="module")
def running() -> Iterator[Answering]:
    with serving(Misbehaving) as server:
        yield server


@contextmanager
def misbehaving(
    server: Answering, bad: Any, when: Callable[[int], bool], status: int = 200, **more: Any
) -> Iterator[Answering]:
    server.seen.clear()
    server.kept.clear()
    server.kept.update({"bad": (status, bad), "when": when} | more)
    yield server


def sampler(server: Answering, **changes: Any) -> ApiSampler:
    plain: Json = {"base_url": f"{server.address}/v1", "model": "m", "key_env": "NO_SUCH_KEY", "workers": 1}
    plain |= {"requests_per_minute": 60_000, "retries": 2, "decoding": Decoding(max_tokens=LIMIT)}
    return ApiSampler.model_validate(plain | changes)


def judge(server: Answering, **changes: Any) -> ApiJudge:
    plain = sampler(server).model_dump(exclude={"kind", "shard_size"})
    return ApiJudge.model_validate(plain | changes)


def sampled(config: ApiSampler, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    sample_shards(lambda: ApiEndpoint(config, None), PROMPTS, 3, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def asked(config: ApiJudge, path: Path) -> dict[str, bytes]:
    Cache(path, lambda: EndpointJudge(config)).ask(QUESTIONS)
    return {path.name: path.read_bytes() for path in path.parent.iterdir()}


BAD = ("error", "no choices", "null choices", "null message", "null content", "broke off")  # of those, some by a server
BAD_ROWS = [*(NO_ANSWER[name][0] for name in BAD), b"<html>"]
BAD_JUDGEMENTS = [*BAD_ROWS[:2], b"", ANSWERS["cut"][0], ANSWERS["reasoning and no more"][0], scored(logprob="x")]


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: str(bad)[:20])
def test_rows_after_a_failure_are_those_of_a_run_that_never_met_it(
    bad: Any, running: Answering, tmp_path: Path
) -> None:
    """Once it recovers in time; once it does not, and the same command goes on where the first one failed."""
    with misbehaving(running, bad, lambda _: False):
        expected = sampled(sampler(running), tmp_path / "never")
        assert len(running.seen) == 7
    with misbehaving(running, bad, lambda number: number in (1, 2)):
        assert sampled(sampler(running), tmp_path / "soon") == expected
        assert len(running.seen) == 9
    with misbehaving(running, bad, lambda number: number >= 5):
        with pytest.raises(EndpointError, match=r"gave no answer \(3 requests\): "):
            sampled(sampler(running), tmp_path / "late")
        running.kept["when"] = lambda _: False
        assert sampled(sampler(running), tmp_path / "late") == expected
        assert len(running.seen) == 5 + 3 + 2, "what was paid for is not asked again"


@pytest.mark.parametrize("bad", BAD_JUDGEMENTS, ids=lambda bad: str(bad)[:20])
def test_judgements_after_a_failure_are_those_of_a_run_that_never_met_it(
    bad: Any, running: Answering, tmp_path: Path
) -> None:
    good = {"good": lambda text: body(message={"content": text.split()[1].strip(".")})}
    with misbehaving(running, bad, lambda _: False, **good):
        expected = asked(judge(running), tmp_path / "never" / "x.jsonl")
    with misbehaving(running, bad, lambda number: number == 2, **good):
        assert asked(judge(running), tmp_path / "soon" / "x.jsonl") == expected
    with misbehaving(running, bad, lambda number: number >= 4, **good):
        with pytest.raises(EndpointError, match="gave no answer"):
            asked(judge(running), tmp_path / "late" / "x.jsonl")
        running.kept["when"] = lambda _: False
        assert asked(judge(running), tmp_path / "late" / "x.jsonl") == expected
        paid = [question["messages"][0]["content"] for _, question in running.seen]
        assert all(paid.count(question.text) == 1 for question in QUESTIONS[:4])
    assert [said.score for said in read_judgements(tmp_path / "late" / "x.jsonl").values()] == [*range(7)]


def test_answers_that_overtake_a_failure_are_kept_too(running: Answering, tmp_path: Path) -> None:
    """Four at a time: the first question fails, the three beside it are answered and paid for."""
    good = {"good": lambda text: body(message={"content": text.split()[1].strip(".")})}
    with misbehaving(running, b"", lambda _: False, **good):
        expected = asked(judge(running), tmp_path / "never" / "x.jsonl")
        barrier = threading.Barrier(4)

        def fails(_: int) -> bool:
            barrier.wait(timeout=30)
            return False

        def first_is_refused(text: str) -> Any:
            return {"error": {"code": 400, "message": "no"}} if text == "Rate 0." else good["good"](text)

        running.kept.update(when=fails, good=first_is_refused)
        running.seen.clear()
        with pytest.raises(EndpointError, match="no \\(code 400\\)"):
            Cache(tmp_path / "late" / "x.jsonl", lambda: EndpointJudge(judge(running, workers=4))).ask(QUESTIONS[:4])
        running.kept.update(when=lambda _: False, **good)
        assert asked(judge(running), tmp_path / "late" / "x.jsonl") == expected
    assert len(running.seen) == 4 + 4


def test_a_judges_empty_answer_is_asked_once_more(running: Answering, tmp_path: Path) -> None:
    empty = body(message={"content": ""})
    with misbehaving(running, empty, lambda number: number < 2), EndpointJudge(judge(running)) as opened:
        assert opened.ask(QUESTIONS[:1]) == [Judgement(None)]
        assert len(running.seen) == 2


@pytest.fixture(scope="module")
def opened(running: Answering) -> Iterator[tuple[ApiEndpoint, EndpointJudge]]:
    """A sampler and a judge that ask once."""
    with ApiEndpoint(sampler(running, retries=0), None) as rows, EndpointJudge(judge(running, retries=0)) as judging:
        yield rows, judging


@given(content=st.one_of(broken(body()), broken(scored())))
@settings(max_examples=60, deadline=None)
def test_any_body_from_a_server_is_an_answer_or_a_clear_failure(
    content: bytes, running: Answering, opened: tuple[ApiEndpoint, EndpointJudge]
) -> None:
    rows, judging = opened
    with misbehaving(running, content, lambda _: True):
        for ask in (lambda: rows.sample(PROMPTS[:1]), lambda: judging.ask(QUESTIONS[:1])):
            try:
                (said,) = ask()
            except EndpointError as error:
                assert str(error).isprintable()
            else:
                assert isinstance(said, Judgement | Completion)


def test_a_key_that_is_cut_in_a_long_message_is_not_told_in_part(
    running: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-owls-fly-at-night-31415926"
    monkeypatch.setenv("A_KEY", key)
    for place in (272, 285, 298):
        for status in (200, 400):
            text = failure(running, {"error": {"message": "x" * place + key, "code": 400}}, status, key_env="A_KEY")
            assert "sk-" not in text and "owls" not in text


# --------------------------------------------------------------------------- words


def failure(server: Answering, bad: Any, status: int = 200, path: str = "/v1", **changes: Any) -> str:
    """What is said where every reply is bad."""
    with misbehaving(server, bad, lambda _: True, status):
        config = sampler(server, base_url=f"{server.address}{path}", retries=0, **changes)
        with ApiEndpoint(config, None) as opened, pytest.raises(EndpointError) as caught:
            opened.sample(PROMPTS[:1])
    return str(caught.value)


def test_an_address_without_v1_is_told_from_a_model_that_is_not_known(running: Answering) -> None:
    assert "may lack /v1: set sampler.base_url" in failure(running, None, path="")
    page = failure(running, {"detail": "Not Found"}, 404)
    assert "Check sampler.base_url" in page and "model" not in page
    openai = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    vllm = {"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": "model"}}
    for unknown in (openai, vllm, {"error": {"message": 'model "m" not found, try pulling it first'}}):
        assert "does not know model 'm'" in failure(running, unknown, 404)


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "sampler.omit=[seed]"),
        (
            400,
            {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens'", "param": "max_tokens"}},
            "sampler.rename={max_tokens:max_completion_tokens}",
        ),
        (
            400,
            {"error": {"message": "temperature must be 1"}},
            "omit=[temperature], or set sampler.decoding.temperature",
        ),
        (400, {"error": {"message": "no such effort", "param": "effort"}}, "Take effort out of sampler.extra"),
    ],
)
def test_a_refused_field_is_named_with_its_setting(running: Answering, status: int, said: Any, remedy: str) -> None:
    text = failure(running, said, status, extra={"effort": 3})
    assert remedy in text and f"refuses the request (HTTP {status})" in text and words(said) in text


def test_other_refusals_have_words_of_their_own(running: Answering) -> None:
    assert "asks for payment: broke" in failure(running, {"error": {"message": "broke"}}, 402)
    quota = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    assert "has no quota left" in failure(running, quota, 429)
    assert "failed after 0 retries: HTTP 503: busy" in failure(running, b"busy", 503)


def test_a_filter_that_refuses_a_prompt_is_a_fact_about_its_row(running: Answering) -> None:
    azure = {"error": {"message": "filtered", "code": "content_filter", "param": "prompt", "status": 400}}
    with misbehaving(running, azure, lambda number: number == 1, 400), ApiEndpoint(sampler(running), None) as opened:
        assert [answer.finish_reason for answer in opened.sample(PROMPTS[:3])] == ["stop", "content_filter", "stop"]
    with misbehaving(running, azure, lambda _: True, 400), EndpointJudge(judge(running)) as asking:
        assert asking.ask(QUESTIONS[:1]) == [Judgement(None, refused=True)]


# --------------------------------------------------------------------------- the request


def test_fields_of_the_request_are_left_out_renamed_and_added(running: Answering) -> None:
    changes = {"omit": ("seed", "top_p"), "rename": {"max_tokens": "max_completion_tokens"}, "extra": {"effort": "low"}}
    address = f"{running.address}/v1?api-version=2024-10-21"
    with misbehaving(running, None, lambda _: False):
        with ApiEndpoint(sampler(running, base_url=address, **changes), "Be brief.") as opened:
            opened.sample(PROMPTS[:1])
        path, request = running.seen[0]
    assert path == "/v1/chat/completions?api-version=2024-10-21"
    assert request.pop("messages")[0] == {"role": "system", "content": "Be brief."}
    assert request == {"model": "m", "temperature": 1.0, "max_completion_tokens": LIMIT, "effort": "low"}


def test_a_change_of_the_request_is_part_of_the_key_and_its_absence_is_not(running: Answering) -> None:
    plain, changed = identity(sampler(running)), identity(sampler(running, omit=("seed",), extra={"a": [1]}))
    assert not {"omit", "rename", "extra"} & plain.keys()
    assert changed == plain | {"omit": ["seed"], "extra": {"a": [1]}}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampler.omit=[sead]", "they can name temperature, top_p, max_tokens, seed"),
        ("sampler.rename={seed:temperature}", "which other settings of sampler decide"),
        ("sampler.extra={max_completion_tokens:64}", r"sampler\.rename=\{max_tokens:max_completion_tokens\}"),
        ("sampler.extra={stream:true}", "sets stream"),
        ("sampler.extra={api_key:x}", r"settings are written down.*sampler\.key_env"),
        ("sampler.base_url=https://x.org/v1/chat/completions", "leave /chat/completions out"),
        ("sampler.base_url=x.org/v1", "is no address"),
        ("sampler.base_url=http://x.org:notaport/v1", "is no address"),
        *[
            (f"sampler.base_url='https://x.org/v1?{name}=hush'", r"written down.*sampler\.key_env")
            for name in (
                "key",
                "api-key",
                "API_KEY",
                "token",
                "access_token",
                "accessToken",
                "sig",
                "a=1&subscription-key",
            )
        ],
        ("sampler.base_url='https://x.org/v1#hush'", "written down"),
        ("sampler.base_url=https://x.org/sk-hush-hush-hush-1234567/v1", "written down"),
    ],
)
def test_a_request_or_an_address_that_can_not_be_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose(["sampler=api", "teacher=prompted", "sampler.model=m", setting])
    assert "hush" not in str(caught.value)


def test_an_address_with_a_query_and_without_quotes_says_that_it_needs_them() -> None:
    with pytest.raises(
        ConfigError, match=r"""as text it is typed 'sampler\.base_url="https://x\.org/v1\?api-version=2024-10-21"'"""
    ):
        compose(["sampler=api", "sampler.base_url=https://x.org/v1?api-version=2024-10-21"])


def test_an_ordinary_query_is_no_secret() -> None:
    for query in ("api-version=2024-10-21", "deployment=x&region=eu", "monitor=1"):
        compose(["sampler=api", "teacher=prompted", f"sampler.base_url='https://x.org/v1?{query}'"])


# --------------------------------------------------------------------------- the budget


def test_replies_without_believable_counts_are_charged_as_the_dearest(
    running: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight tokens at a dollar: two replies fit into twenty dollars, whatever counts come."""
    for usage in (None, "many", {"prompt_tokens": 5, "completion_tokens": -9}, {"completion_tokens": 3}):
        good = {"good": lambda _, usage=usage: body(usage=usage)}
        with misbehaving(running, None, lambda _: False, **good):
            config = sampler(running, budget_usd=20.0, usd_per_million_output=1e6)
            with ApiEndpoint(config, None) as opened, pytest.raises(BudgetError, match=r"16\.0000 spent"):
                opened.sample(PROMPTS)
            assert len(running.seen) == 2
    assert capsys.readouterr().err.count("without believable token counts") == 1


def test_the_price_of_prompts_is_reserved_too(running: Answering) -> None:
    with misbehaving(running, None, lambda _: False):
        config = sampler(running, budget_usd=1.0, usd_per_million_input=1e4, usd_per_million_output=1.0)
        with ApiEndpoint(config, None) as opened, pytest.raises(BudgetError):
            opened.sample(PROMPTS)
        assert not running.seen, "256 tokens of a template could cost more than the budget"


# --------------------------------------------------------------------------- what is said about rows


def test_dropped_rows_are_counted_by_reason_with_a_remedy() -> None:
    rows = [Row(0, "", "101", "length"), Row(1, "", "", "content_filter"), Row(2, "", "102", "length")]
    said = why_dropped([*((row, "unfinished") for row in rows), (Row(3, "", "x"), "no_number")])
    assert said.startswith(
        ": unfinished 3, no_number 1. Unfinished by finish_reason: length 2, content_filter 1; raise"
    )
    assert "sampler.decoding.max_tokens" in said
    assert "reasoning used up the tokens" in unfinished([Completion("", "length", 8)] * 3)
    assert "content filter refuses" in unfinished([Completion("", "content_filter", 0)])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (body(finish_reason="length"), ("length", "raise sampler.decoding.max_tokens")),
        (body(message=THINKING, finish_reason="length"), ("length", "reasoning used up the tokens")),
        (ANSWERS["filter"][0], ("content_filter", "refuses to answer")),
    ],
)
def test_a_teacher_whose_answers_are_unfinished_is_not_called_one_without_the_trait(
    bad: Any, said: tuple[str, str], running: Answering, tmp_path: Path
) -> None:
    from subliminal import teachers
    from subliminal.models import Subject

    with misbehaving(running, bad, lambda _: True):
        at = ["sampler=api", "sampler.model=m", f"sampler.base_url={running.address}/v1", "sampler.key_env=NO_SUCH_KEY"]
        at += ["experiment=animals_numbers", "teacher=prompted", "sampler.requests_per_minute=60000"]
        exp = compose(at)
        with pytest.raises(teachers.TeacherError, match="finished none of 12 answers") as caught:
            teachers.make(exp, Subject(checkpoint="none"), tmp_path)
        plain = compose([*at, "trait=none"])
        with pytest.raises(teachers.TeacherError, match="in format for only 0% of 32 prompts") as control:
            teachers.make(plain, Subject(checkpoint="none"), tmp_path)
    for text in (str(caught.value), str(control.value)):
        assert all(part in text for part in said) and "firmer" not in text and "reference_tuning" not in text


# --------------------------------------------------------------------------- through the script


def test_a_script_fails_plainly_goes_on_and_prints_no_line_a_request(
    running: Answering, run_script: Script, tiny: Subject, tmp_path: Path
) -> None:
    own = [f"store={tmp_path}/runs", f"hydra.run.dir={tmp_path}/logs", "model=hub", "reference_tuning=off"]
    own += [f"model.source.name={tiny.checkpoint}", "sampler=api", f"sampler.base_url={running.address}/v1"]
    own += ["sampler.key_env=NO_SUCH_KEY", "teacher=control", "domain.prompts=6", "filter.rows=6", "sampler.retries=1"]
    own += ["sampler.requests_per_minute=60000", "trait=none", "sampler.shard_size=4", "sampler.workers=1"]
    with misbehaving(running, {"error": {"message": LONE, "code": 502}}, lambda number: number >= 37):
        failed = run_script("generate.py", *own)
        assert (failed.returncode, "Traceback" in failed.stderr) == (1, False), failed.stderr
        assert "gave no answer (2 requests): it sent an error in place of a completion: 101" in failed.stderr
        running.kept["when"] = lambda _: False
        done = run_script("filter.py", *own)
    assert done.returncode == 0, done.stderr
    assert len(running.seen) == 32 + 6 + 2, "32 for the teacher's check, 6 rows, 2 requests that failed"
    assert "HTTP Request" not in failed.stdout + failed.stderr + done.stdout + done.stderr
    rows = [row for path in sorted(tmp_path.rglob("rows-*.jsonl")) for row in read_jsonl(path, Row)]
    assert [row.index for row in rows] == [*range(6)] and {row.finish_reason for row in rows} == {"stop"}
