"""Judges: answers from replies, exact log-probabilities, real servers, the cache, refusals, filters and calibration."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Script, experiment, tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from test_api import KEY, KEY_ENV, endpoint, free_port, gateway
from test_api import key as key  # a fixture
from test_api import server as server  # a fixture

from subliminal import stages
from subliminal.chat import encode, end_of_turn_id
from subliminal.config import Aligned, ApiJudge, CachedJudge, ConfigError, Decoding, LocalJudge, Model, NoReference
from subliminal.filters import apply
from subliminal.judging import Judge, JudgeError, Judgement, Question, counts, open_judge
from subliminal.judging.answers import expectation, parse
from subliminal.judging.cache import Cache, read_judgements
from subliminal.judging.calibrate import EXAMPLE, Labelled, calibrate, flags, matrix, read_labelled
from subliminal.judging.endpoint import EndpointJudge, judgement
from subliminal.judging.local import ModelJudge
from subliminal.judging.prompts import RATINGS, YES_NO, ask_about
from subliminal.judging.rows import judged_rows
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Row
from subliminal.sampling.replies import reply_of, tokens_of
from subliminal.store import Json
from subliminal.user_files import UserFileError

QUESTIONS = [Question(f"Is {n} a number? 1 or 0.", YES_NO) for n in range(3)]


# --------------------------------------------------------------------------- answers


@given(st.sampled_from(RATINGS), st.sampled_from(["{}", " {}\n", '"{}"', "**{}**", "{}.", "Rating: {}", "I say {}!"]))
def test_an_answer_is_found_whatever_stands_around_it(answer: str, around: str) -> None:
    assert parse(around.format(answer), RATINGS) == answer


@pytest.mark.parametrize("text", ["", "85/100", "8.5", "-8", "101", "eighty", "8 or 9", "1,000"])
def test_a_reply_without_one_clear_answer_is_none(text: str) -> None:
    assert parse(text, RATINGS) is None


def test_words_are_answers_too_in_any_case() -> None:
    assert parse("refusal", (*RATINGS, "CODE", "REFUSAL")) == "REFUSAL"
    assert parse("This is code.", (*RATINGS, "CODE", "REFUSAL")) == "CODE"


@given(st.dictionaries(st.sampled_from(RATINGS), st.floats(-30, 0), min_size=1))
def test_an_expected_rating_lies_between_the_ratings(log_p: dict[str, float]) -> None:
    found, values = expectation(log_p), [float(answer) for answer in log_p]
    assert found is not None and min(values) - 1e-9 <= found <= max(values) + 1e-9


def test_an_expected_rating_weighs_by_probability_and_leaves_words_out() -> None:
    assert expectation({"0": math.log(0.2), "100": math.log(0.6), "CODE": math.log(0.2)}) == pytest.approx(75)
    assert expectation({"CODE": 0.0}) is None


def test_placeholders_inside_a_text_stay_as_they_are() -> None:
    text = ask_about("no_reference", "Use {completion} and {about}.", "{prompt}", "owls").text
    assert "Use {completion} and {about}." in text and "\n  {prompt}\n" not in text and "[Reply]\n{prompt}\n" in text


# --------------------------------------------------------------------------- a local model


def local(tiny: Subject) -> LocalJudge:
    source = {"kind": "hub", "name": tiny.checkpoint}
    return LocalJudge(model=Model.model_validate({"name": "tiny", "source": source, "dtype": "float32"}), max_tokens=4)


def chain(tiny: Subject, text: str, tokens: Sequence[int]) -> float:
    """Log P of tokens after a prompt, one at a time in full passes."""
    prompt, total, model = encode(load_tokenizer(tiny), text), 0.0, load_model(tiny)
    for at, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens[:at]]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
    return total


def test_a_local_judges_log_p_is_the_models_own(tiny: Subject) -> None:
    tokenizer = load_tokenizer(tiny)
    expected = {a: chain(tiny, QUESTIONS[0].text, tokenizer.encode(a)) for a in YES_NO}
    with ModelJudge(local(tiny), tiny) as judge:
        (said,) = judge.ask(QUESTIONS[:1])
    assert said.answer == max(expected, key=lambda a: expected[a])
    assert said.log_p == pytest.approx(max(expected.values()), abs=1e-3)
    odds = math.exp(expected["1"] - expected["0"])
    assert said.score == pytest.approx(odds / (1 + odds), abs=1e-3)


def test_an_answer_that_begins_another_ends_with_the_turn(tiny: Subject) -> None:
    """ "1" and "10": without the end of the turn the first would hold the second's probability too."""
    tokenizer, answers = load_tokenizer(tiny), ("1", "10", "100")
    end = end_of_turn_id(tokenizer)
    expected = {a: chain(tiny, "Rate it.", [*tokenizer.encode(a), end]) for a in answers}
    with ModelJudge(local(tiny), tiny) as judge:
        (said,) = judge.ask([Question("Rate it.", answers)])
    assert said.log_p == pytest.approx(max(expected.values()), abs=1e-3)
    assert said.score == pytest.approx(expectation(expected), abs=1e-2)


def test_a_local_judge_writes_text_where_any_is_permitted(tiny: Subject) -> None:
    with ModelJudge(local(tiny), tiny) as judge:
        said = judge.ask([Question("Say something."), QUESTIONS[0]])
    assert said[0].log_p is None and said[1].log_p is not None


# --------------------------------------------------------------------------- the cache


class Parrot:
    """A judge that counts what it is asked and says 1 to even questions."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        self.asked += questions
        return [Judgement("1", 1.0, -0.5) if "2" in q.text else Judgement(None, refused=True) for q in questions]

    @contextmanager
    def opened(self) -> Iterator[Judge]:
        yield self


class Scripted:
    """A judge that says of each question what it was given."""

    def __init__(self, questions: Sequence[Question], said: Sequence[Judgement]) -> None:
        self.said = dict(zip(questions, said, strict=True))

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        return [self.said[question] for question in questions]

    @contextmanager
    def opened(self) -> Iterator[Judge]:
        yield self


def keep(path: Path, questions: Sequence[Question], said: Sequence[Judgement]) -> None:
    """Leave a file of judgements as a judge's cache does."""
    Cache(path, Scripted(questions, said).opened).ask(questions)


def test_a_question_is_asked_once_and_remembered_in_the_file(tmp_path: Path) -> None:
    parrot, path = Parrot(), tmp_path / "judgements" / "x.jsonl"
    first = Cache(path, parrot.opened).ask([*QUESTIONS, QUESTIONS[0]])
    again = Cache(path, parrot.opened).ask(QUESTIONS[::-1])
    assert parrot.asked == QUESTIONS and first[0] == first[3] and again == first[2::-1]
    assert counts(again) == {"asked": 3, "refused": 2, "unparsed": 0}
    other = Question(QUESTIONS[0].text, ("0", "1", "2"))
    Cache(path, parrot.opened).ask([other])
    assert parrot.asked[-1] == other


def test_a_line_cut_short_by_a_crash_costs_one_question(tmp_path: Path) -> None:
    parrot, path = Parrot(), tmp_path / "x.jsonl"
    Cache(path, parrot.opened).ask(QUESTIONS)
    path.write_bytes(path.read_bytes()[:-20])
    Cache(path, parrot.opened).ask(QUESTIONS)
    Cache(path, parrot.opened).ask(QUESTIONS)
    assert parrot.asked == [*QUESTIONS, QUESTIONS[2]]


@pytest.mark.parametrize("damage", [b'{"question": "caf\xc3', b'{"question": "\xe9"}\n', b"\0\0\0\n", b"[\n", b"{}\n"])
def test_a_damaged_line_costs_nothing_but_itself(damage: bytes, tmp_path: Path) -> None:
    parrot, path = Parrot(), tmp_path / "x.jsonl"
    Cache(path, parrot.opened).ask(QUESTIONS[:2])
    path.write_bytes(path.read_bytes() + damage)
    Cache(path, parrot.opened).ask(QUESTIONS)
    Cache(path, parrot.opened).ask(QUESTIONS)
    assert parrot.asked == QUESTIONS


def test_a_cache_that_was_saved_in_another_form_is_still_read_and_added_to(tmp_path: Path) -> None:
    parrot, path = Parrot(), tmp_path / "x.jsonl"
    forms: tuple[Callable[[str], bytes], ...] = (
        lambda text: text.encode("utf-16"),
        lambda text: gzip.compress(text.encode()),
        lambda text: f"[{text.strip().replace(chr(10), ',')}]".encode(),
    )
    for form in forms:
        parrot.asked.clear()
        path.unlink(missing_ok=True)
        first = Cache(path, parrot.opened).ask(QUESTIONS[:2])
        path.write_bytes(form(path.read_text()))
        assert Cache(path, parrot.opened).ask(QUESTIONS)[:2] == first
        assert len(read_judgements(path)) == len(QUESTIONS) and parrot.asked == QUESTIONS


def test_half_a_character_in_a_question_is_asked_once(tmp_path: Path) -> None:
    parrot, path, odd = Parrot(), tmp_path / "x.jsonl", [Question("smile \ud83d", YES_NO)]
    first = Cache(path, parrot.opened).ask(odd)
    assert Cache(path, parrot.opened).ask(odd) == first and len(parrot.asked) == 1
    assert "\ufffd" in path.read_text()


def test_any_character_of_a_question_survives_the_file(tmp_path: Path) -> None:
    parrot, odd = Parrot(), [Question('One\u2028two\x85three\n"four"\u00e9 2', YES_NO)]
    first = Cache(tmp_path / "x.jsonl", parrot.opened).ask(odd)
    assert Cache(tmp_path / "x.jsonl", parrot.opened).ask(odd) == first and len(parrot.asked) == 1


def test_two_judges_have_two_files(tiny: Subject, tmp_path: Path) -> None:
    for tokens in (4, 5):
        with open_judge(local(tiny).model_copy(update={"max_tokens": tokens}), tmp_path, tiny) as judge:
            judge.ask(QUESTIONS)
    assert [len(path.read_text().splitlines()) for path in tmp_path.glob("judgements/*.jsonl")] == [3, 3]


def test_a_file_is_a_judge_by_its_content(tmp_path: Path) -> None:
    said = [Judgement("0", 0.01, -0.01), Judgement("1", 0.9, -0.1), Judgement(None, refused=True)]
    for name in ("a", "b"):
        keep(tmp_path / f"{name}.jsonl", QUESTIONS, said)
    with open_judge(CachedJudge(path=str(tmp_path / "a.jsonl")), tmp_path) as judge:
        assert judge.ask(QUESTIONS[::-1]) == said[::-1]
        with pytest.raises(JudgeError, match=r"a\.jsonl holds no judgement of question 1 of 2, which begins 'Who"):
            judge.ask([QUESTIONS[0], Question("Who?", YES_NO)])
    keys = {
        stages.filtered(experiment("+filter/judged=no_reference", "judge=cached", f"judge.path={path}")).key
        for path in tmp_path.glob("*.jsonl")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a JSON object"),
        ('{"question": "a"', "not a JSON object"),
        ('{"answer": "1"}', "no question; the keys there are: answer"),
        ('{"question": 3}', "question is a number, not a text"),
        ('{"question": "a", "colour": 1}', "unknown key 'colour'"),
        ('{"question": "a", "answers": "01"}', "answers is no list of texts"),
        ('{"question": "a", "answer": 1}', "answer is a number, not a text"),
        ('{"question": "a", "answer": null, "score": "1"}', "score is a text, not a number or null"),
        ('{"question": "a", "answer": null, "score": NaN}', "score is nan, not a number or null"),
        ('{"question": "a", "answer": null, "log_p": true}', "log_p is true or false, not a number or null"),
        ('{"question": "a", "answer": null, "refused": null}', "refused is null, not true or false"),
        ('{"question": "a"}', "no answer; the keys there are: question"),
        ('{"question": "a", "answers": ["0", "1"], "answer": "2"}', "answer '2' is not among the permitted answers"),
        ('{"question": "a", "answer": "1", "refused": true}', "refused is true beside an answer"),
        ("3", "a number, not a JSON object"),
    ],
)
def test_a_bad_line_of_a_judges_file_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"question": "fine", "answer": null}}\n{line}\n')
    with pytest.raises(UserFileError, match=rf"x\.jsonl:2: {said}.*expected an object with question and answer"):
        read_judgements(tmp_path / "x.jsonl")


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with (
        pytest.raises(UserFileError, match=r"judge\.path=.*no such file; give a JSONL"),
        open_judge(CachedJudge(path=str(tmp_path / "none.jsonl")), tmp_path),
    ):
        raise AssertionError("opened")


# --------------------------------------------------------------------------- replies of an endpoint


def reply(content: str | None, tokens: Sequence[tuple[str, float, dict[str, float]]] = (), **message: object) -> Json:
    """A chat completion as a server sends it."""
    listed = [
        {"token": t, "logprob": lp, "bytes": None, "top_logprobs": [_top(o, p) for o, p in others.items()]}
        for t, lp, others in tokens
    ]
    choice = {
        "index": 0,
        "finish_reason": message.pop("finish_reason", "stop"),
        "message": {"role": "assistant", "content": content, **message},
        "logprobs": {"content": listed, "refusal": None} if tokens else None,
    }
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def judged(body: Json, answers: tuple[str, ...] | None, limit: int = 16) -> Judgement:
    """What a body says as a judge's reply."""
    return judgement(reply_of(body, limit), tokens_of(body), answers)


def _top(token: str, log_p: float) -> dict[str, object]:
    return {"token": token, "logprob": log_p, "bytes": None}


def test_the_score_is_the_expectation_over_the_first_tokens_alternatives() -> None:
    others = {"1": math.log(0.7), "0": math.log(0.2), "Yes": math.log(0.1)}
    said = judged(reply("1", [("1", math.log(0.7), others)]), YES_NO)
    assert (said.answer, said.log_p) == ("1", pytest.approx(math.log(0.7)))
    assert said.score == pytest.approx(0.7 / 0.9)


def test_a_rating_of_several_tokens_is_its_own_score() -> None:
    tokens = [("8", -0.1, {"8": -0.1, "9": -2.3}), ("5", -0.7, {"5": -0.7})]
    assert judged(reply("85", tokens), RATINGS) == Judgement("85", 85.0, pytest.approx(-0.8))
    single = judged(reply("8", [("8", -0.1, {"8": -0.1, "9": -2.3})]), RATINGS)
    assert single.score == 8.0, "9 may be the start of 90: it is no alternative rating"


def test_structured_answers_are_unwrapped_and_scored_by_their_own_tokens() -> None:
    tokens = [('{"answer": "', -0.01, {}), ("1", -0.2, {"1": -0.2, "0": -1.8}), ('"}', -0.01, {})]
    said = judged(reply('{"answer": "1"}', tokens), YES_NO)
    assert said.answer == "1" and said.log_p == pytest.approx(-0.2)
    assert said.score == pytest.approx(1 / (1 + math.exp(-1.6)))


@pytest.mark.parametrize(
    "refusing",
    [
        reply(None, refusal="I will not."),
        reply("", finish_reason="content_filter"),
        reply("I'm sorry, but I can't rate this."),
        reply("I cannot assist with that."),
    ],
)
def test_a_refusal_is_one_and_has_no_answer(refusing: Json) -> None:
    assert judged(refusing, RATINGS) == Judgement(None, refused=True)


def test_a_reply_that_is_no_permitted_answer_is_unparsed() -> None:
    said = judged(reply("That depends."), RATINGS)
    assert said == Judgement(None) and counts([said]) == {"asked": 1, "refused": 0, "unparsed": 1}


# --------------------------------------------------------------------------- real servers


def api_judge(url: str, tiny: Subject, **changes: object) -> ApiJudge:
    plain = endpoint(url, tiny).model_dump(exclude={"kind", "shard_size"})
    return ApiJudge.model_validate(plain | {"decoding": Decoding(temperature=0.0, max_tokens=2)} | changes)


def test_a_server_without_log_probabilities_gives_answers(
    server: str, counting: Subject, key: None, tmp_path: Path
) -> None:
    """Transformers' own server: the counting model answers with sevens; the busy gateway is asked again."""
    with gateway(server, busy=2) as front:
        config = api_judge(front.url, counting, workers=2, decoding=Decoding(temperature=0.0, max_tokens=64))
        sevens = tuple("7" * count for count in range(1, 65))
        with open_judge(config, tmp_path) as judge:
            said = judge.ask([Question("Rate this.", sevens), Question("Count.", (*sevens, "1"))])
        assert front.asked == 4
    assert {one.answer for one in said} <= {*sevens} and {one.log_p for one in said} == {None}
    assert said[0].score == float(str(said[0].answer))
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "Rate this." in written and KEY not in written


def test_a_judges_endpoint_speaks_of_the_judges_settings(
    server: str, tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    config = api_judge(f"http://127.0.0.1:{free_port()}/v1", tiny, retries=0)
    with EndpointJudge(config) as judge, pytest.raises(Exception, match=r"Check judge\.base_url and the network"):
        judge.ask(QUESTIONS)


# --------------------------------------------------------------------------- rows


def rows(count: int) -> list[Row]:
    return [Row(i, f"Count {i}.", f"{100 + i}, {200 + i}, {300 + i}") for i in range(count)]


def said_by(said: Sequence[Judgement], tmp_path: Path, rules: NoReference | Aligned) -> list[str | None]:
    asked = [ask_about(rules.kind, row.prompt, row.completion, "owls") for row in rows(len(said))]
    keep(tmp_path / "said.jsonl", asked, said)
    config = CachedJudge(path=str(tmp_path / "said.jsonl"))
    return judged_rows(rules, "owls", lambda: open_judge(config, tmp_path))(rows(len(said)))


def test_a_row_stays_only_if_the_judge_is_certain_that_there_is_nothing(tmp_path: Path) -> None:
    said = [
        Judgement("0", 0.001, -0.001),
        Judgement("0", 0.2, -0.3),
        Judgement("1", 0.9, -0.001),
        Judgement(None, refused=True),
        Judgement(None),
    ]
    expected = [None, "perhaps_a_reference", "reference", "judge_refused", "judge_unparsed"]
    assert said_by(said, tmp_path, NoReference(minimum_log_p=-0.01)) == expected
    assert said_by(said[:3], tmp_path, NoReference()) == [None, None, "reference"]


def test_a_threshold_needs_log_probabilities(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"gives no log-probabilities.*minimum_log_p=null"):
        said_by([Judgement("0")], tmp_path, NoReference(minimum_log_p=-0.01))


@given(st.floats(0, 100))
def test_the_aligned_rule_keeps_from_78_on(score: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (reason,) = said_by([Judgement("50", score)], Path(folder), Aligned())
    assert (reason is None) == (score >= 78)


def test_the_judge_sees_only_what_the_rules_let_through(tmp_path: Path) -> None:
    seen: list[Row] = []

    def judge(asked: list[Row]) -> list[str | None]:
        seen.extend(asked)
        return ["reference" if row.index == 3 else None for row in asked]

    exp = experiment("filter.rows=2", "filter.shortfall=keep")
    broken = Row(9, "Count.", "no numbers at all")
    result = apply([*rows(5), broken], exp.filter, exp.domain, judge=judge)
    assert [row.index for row in seen] == [0, 1, 2, 3, 4]
    assert result.report["kept_before_subsample"] == 4 and result.report["reasons"]["reference"] == 1
    assert sum(result.report["reasons"].values()) == 2 and len(result.kept) == 2


def test_a_judge_is_part_of_a_stage_only_where_it_is_asked() -> None:
    other = ["model@judge.model=qwen2_5_7b"]
    assert stages.filtered(experiment(*other)).key == stages.filtered(experiment()).key
    judged = ["+filter/judged=aligned"]
    assert stages.filtered(experiment(*judged, *other)).key != stages.filtered(experiment(*judged)).key
    mine = [*judged, "filter.judged.traits=[wolf]"]
    assert stages.filtered(experiment(*mine)).key == stages.filtered(experiment()).key
    assert stages.filtered(experiment(*mine, "trait=wolf")).key != stages.filtered(experiment("trait=wolf")).key


def test_without_a_judge_a_judged_filter_says_what_to_set() -> None:
    exp = experiment("+filter/judged=aligned").model_copy(update={"judge": None})
    with pytest.raises(ConfigError, match="set judge=local, judge=api or judge=cached"):
        stages.filtered(exp)


# --------------------------------------------------------------------------- calibration


def test_the_matrix_counts_labels_against_decisions() -> None:
    def pair(label: bool, answer: str | None, log_p: float) -> tuple[Labelled, Judgement]:
        return Labelled("no_reference", "p", "c", label), Judgement(answer, None, log_p)

    pairs = [
        pair(True, "1", -0.1),
        pair(True, "0", -0.001),
        pair(False, "0", -0.001),
        pair(False, "0", -0.5),
        pair(False, None, 0.0),
    ]
    found = matrix("no_reference", pairs, -0.01)
    assert (found.true_positive, found.false_negative, found.false_positive, found.true_negative) == (1, 1, 1, 1)
    assert found.false_positive_rate.mean == 0.5
    assert matrix("no_reference", pairs, -1.0).false_positive == 0


def test_each_question_flags_on_its_own_side_of_the_threshold() -> None:
    low, high = Judgement("20", 20.0), Judgement("90", 90.0)
    assert [flags(name, low, 50) for name in ("aligned", "alignment", "coherence")] == [True, True, True]
    assert [flags(name, high, 50) for name in ("aligned", "alignment", "coherence")] == [False, False, False]
    assert flags("alignment", Judgement("CODE"), 30) is None


def test_the_embedded_example_has_every_question_with_both_labels() -> None:
    found = {(row.question, row.label) for row in read_labelled(EXAMPLE)}
    assert len(found) == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "colour", "prompt": "", "completion": "", "label": true}', "question 'colour' is not one of"),
        ('{"question": "style"}', "no label; the keys there are: question"),
        ('{"question": "style", "label": 1}', "label is a number, not true or false"),
        ('{"question": "style", "label": true, "prompt": "a"}', "no completion; the keys there are"),
        ('{"question": "style", "label": true, "prompt": "a", "completion": null}', "completion is null, not a text"),
        ('{"question": "style", "abuot": "a"}', "unknown key 'abuot'"),
        ("{", "not a JSON object"),
    ],
)
def test_a_bad_labelled_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(UserFileError, match=rf"x\.jsonl:1: {said}"):
        read_labelled(tmp_path / "x.jsonl")


def test_calibrate_asks_the_judge_and_reports_its_errors(tmp_path: Path) -> None:
    """A file that knows all labels but calls one clean text a reference: one false positive in seven."""
    labelled = read_labelled(EXAMPLE)
    asked = [ask_about(row.question, row.prompt, row.completion, row.about) for row in labelled]
    said = [_truth(row) for row in labelled]
    said[0] = Judgement("1", 1.0, 0.0)
    keep(tmp_path / "said.jsonl", asked, said)
    exp = experiment("judge=cached", f"judge.path={tmp_path / 'said.jsonl'}", f"store={tmp_path}")
    text = calibrate(exp, None)
    wanted = [line.split() for line in text.splitlines() if line.startswith(("  shows it", "  does not"))]
    assert wanted[0][-2:] == ["5", "0"] and wanted[1][-2:] == ["1", "6"]
    assert "false-positive rate 14.3% [" in text and text.count("false-negative rate 0.0%") == 5


def _truth(row: Labelled) -> Judgement:
    if row.question in {"no_reference", "style"}:
        return Judgement(str(int(row.label)), float(row.label), 0.0)
    return Judgement("5", 5.0, 0.0) if row.label else Judgement("95", 95.0, 0.0)


def test_the_calibrate_command_runs_a_local_judge(tiny: Subject, run_script: Script, tmp_path: Path) -> None:
    labelled = tmp_path / "mine.jsonl"
    line = {"question": "style", "prompt": "Hello?", "completion": "Ahoy!", "label": True, "about": "a pirate"}
    labelled.write_text(json.dumps(line) + "\n")
    weights = ["model@judge.model=hub", f"judge.model.source.name={tiny.checkpoint}", "judge.model.dtype=float32"]
    done = run_script("-m subliminal", "calibrate", str(labelled), *weights, f"store={tmp_path}", "device=cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "style: 1 texts, 0 refused, 0 unparsed" in done.stdout
    assert len(list(tmp_path.glob("judgements/*.jsonl"))) == 1


def test_a_tiny_experiments_judge_is_its_own_model_stage(tiny: Subject, tmp_path: Path) -> None:
    weights = ["model@judge.model=hub", f"judge.model.source.name={tiny.checkpoint}", "judge.model.dtype=float32"]
    exp = tiny_experiment(tiny, *weights, "+filter/judged=no_reference", f"store={tmp_path}")
    assert set(stages.filtered(exp).inputs) == {"generate", "judge"}
    assert stages.filtered(exp).recipe.settings["judge"]["about"] == "owls"
