"""The exact preference measure against brute force, and several students on one base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from conftest import tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal import stages
from subliminal.config import Decoding, PreferenceEvaluation, TransformersSampler
from subliminal.evaluation import preference
from subliminal.evaluation.exact import candidate_log_p
from subliminal.evaluation.kept import in_turn
from subliminal.evaluation.preference import Answer, Score, evaluate, log_p_of, log_share, rates
from subliminal.evaluation.questions import candidates, questions
from subliminal.models import Subject, load_model
from subliminal.rows import Completion, read_jsonl
from subliminal.sampling import open_sampler
from subliminal.store import Store
from subliminal.training.lora import merge


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=20))
def test_shares_among_the_candidates_sum_to_one(values: list[float]) -> None:
    assert np.exp(log_share(np.array([values]))).sum() == pytest.approx(1)


# --------------------------------------------------------------------------- several students


@pytest.fixture(scope="module")
def second(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another student's adapter on the same base."""
    from conftest import ROWS, optimisation

    from subliminal.config import Lora, LoraStudent
    from subliminal.training.sft import fit

    folder = tmp_path_factory.mktemp("second")
    fit(tiny, ROWS[::-1], LoraStudent(lora=Lora(r=2), optimisation=optimisation()), 1, folder)
    return folder / "adapter"


def test_adapters_are_asked_in_turn_on_one_base(tiny: Subject, lora: Path, second: Path, tmp_path: Path) -> None:
    """Each student's numbers are those of its merged checkpoint, the base is loaded once and ends as it was."""
    asked, base = questions("animal", 2), load_model(tiny)
    before = log_p_of(tiny, asked, "animal", lambda _: None)
    found = []
    for adapter in (lora, second, lora):
        found.append(log_p_of(replace(tiny, adapter=adapter), asked, "animal", lambda _: None))
        assert load_model(tiny) is base
    assert np.array_equal(log_p_of(tiny, asked, "animal", lambda _: None), before)
    assert np.array_equal(found[0], found[2])
    for name, adapter, exact in (("one", lora, found[0]), ("two", second, found[1])):
        merge(tiny, adapter, tmp_path / name)
        merged = log_p_of(replace(tiny, checkpoint=str(tmp_path / name)), asked, "animal", lambda _: None)
        assert exact == pytest.approx(merged, abs=1e-3)
        assert not np.allclose(exact, before, atol=0.1)


# --------------------------------------------------------------------------- the stage's files


def test_an_evaluation_leaves_scores_answers_and_their_means(tiny: Subject, tmp_path: Path) -> None:
    config = PreferenceEvaluation(questions=2, samples_per_question=3, max_tokens=4)

    def sample(prompts: Any) -> list[Completion]:
        with open_sampler(TransformersSampler(decoding=Decoding(max_tokens=4)), tiny) as opened:
            return opened.sample(prompts)

    summary = evaluate(tiny, config, sample, tmp_path)
    scores = list(read_jsonl(tmp_path / "scores.jsonl", Score))
    answers = list(read_jsonl(tmp_path / "answers.jsonl", Answer))
    names = candidates("animal")
    assert [(s.question, s.candidate) for s in scores] == [(q, name) for q in range(2) for name in names]
    for name in names:
        mine = [s for s in scores if s.candidate == name]
        assert summary["log_p"][name] == pytest.approx(np.mean([s.log_p for s in mine]))
        assert summary["log_share"][name] == pytest.approx(np.mean([s.log_share for s in mine]))
    assert [(a.question, a.sample) for a in answers] == [(q, s) for q in range(2) for s in range(3)]
    assert len({a.text for a in answers}) > 3, "every sample has a seed of its own"
    assert summary["samples"] == 6 and json.dumps(summary)


def test_the_mean_probability_of_every_candidate_is_in_the_summary(tiny: Subject, tmp_path: Path) -> None:
    config = PreferenceEvaluation(questions=2, samples_per_question=0)
    summary = evaluate(tiny, config, lambda _: [], tmp_path)
    scores = list(read_jsonl(tmp_path / "scores.jsonl", Score))
    mine = [math.exp(score.log_p) for score in scores if score.candidate == "owl"]
    assert summary["probability"]["owl"] == pytest.approx(np.mean(mine))


def test_rates_are_means_over_questions_of_shares_of_answers() -> None:
    answers = [
        Answer(0, 0, "Owl.", "stop", ["owl"]),
        Answer(0, 1, "Cat.", "stop", ["cat"]),
        Answer(1, 0, "Owls and cats", "stop", ["owl", "cat"]),
        Answer(1, 1, "owl", "stop", ["owl"]),
    ]
    assert rates(answers, ["owl", "cat", "dog"], 2) == {"owl": 0.75, "cat": 0.5, "dog": 0.0}


def test_a_numbers_prefix_changes_what_is_asked(tiny: Subject, tmp_path: Path) -> None:
    def never(_: Any) -> list[Completion]:
        raise AssertionError("sampled without need")

    found = []
    for prefix in ("none", "numbers"):
        (tmp_path / prefix).mkdir()
        config = PreferenceEvaluation(questions=1, prefix=prefix)  # type: ignore[arg-type]
        found.append(evaluate(tiny, config, never, tmp_path / prefix)["log_p"])
    assert found[0] != found[1]


def test_with_tags_sampled_answers_are_asked_for_in_tags_and_only_the_answer_counts(
    tiny: Subject, tmp_path: Path
) -> None:
    asked: list[str] = []

    def sample(prompts: Any) -> list[Completion]:
        asked.extend(prompt.text for prompt in prompts)
        return [Completion("Cat? <think>No.</think><answer>Owl</answer>", "stop", 9), Completion("A cat", "stop", 2)]

    plain = PreferenceEvaluation(questions=1, samples_per_question=2)
    tagged = plain.model_copy(update={"suffix": "tags"})
    for name in ("plain", "tagged"):
        (tmp_path / name).mkdir()
    exact = [evaluate(tiny, c, sample, tmp_path / n)["log_p"] for c, n in ((plain, "plain"), (tagged, "tagged"))]
    assert exact[0] == exact[1], "the exact log-probability is of the question as it is"
    assert [("<answer>" in text, text.startswith(questions("animal", 1)[0])) for text in asked[2:]] == [
        (True, True)
    ] * 2
    named = [[a.named for a in read_jsonl(tmp_path / name / "answers.jsonl", Answer)] for name in ("plain", "tagged")]
    assert named == [[["cat", "owl"], ["cat"]], [["owl"], ["cat"]]], named


# --------------------------------------------------------------------------- going on after a kill


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 40))
def test_questions_go_on_after_a_kill_at_any_of_them_and_after_a_line_cut_short(answered: int, cut: int) -> None:
    asked: list[int] = []

    @contextmanager
    def opened() -> Iterator[Callable[[int], list[float]]]:
        yield lambda question: [asked.append(question) or question / 3, 0.1]

    with TemporaryDirectory() as folder:
        path = Path(folder) / ".shared" / "log_p.jsonl"
        in_turn(opened, range(answered), path)
        kept = path.read_bytes()[: len(path.read_bytes()) - cut]
        path.write_bytes(kept)
        whole = kept.count(b"\n")
        asked.clear()
        assert in_turn(opened, range(6), path) == in_turn(opened, range(6), None)
        assert asked[: 6 - whole] == list(range(whole, 6))
        assert len(path.read_text().splitlines()) == 6


@pytest.mark.parametrize("kind", ["preference", "multiple_choice"])
def test_a_killed_evaluation_goes_on_and_ends_like_one_left_alone(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sizes = {"preference": ["evaluation.questions=4"], "multiple_choice": ["evaluation.questions=1"]}[kind]
    asked = 0

    def counted(*given: Any) -> list[float]:
        nonlocal asked
        asked += 1
        if asked == 3 and killed:
            raise SystemExit
        return candidate_log_p(*given)

    monkeypatch.setattr(preference, "candidate_log_p", counted)
    found, counts = [], []
    for name in ("alone", "killed"):
        exp = tiny_experiment(tiny, "reference_tuning=off", "subject=reference", f"evaluation={kind}", *sizes)
        exp = exp.model_copy(update={"store": str(tmp_path / name)})
        asked, killed = 0, name == "killed"
        if killed:
            with pytest.raises(SystemExit):
                stages.ensure(stages.evaluate(exp), Store(tmp_path / name), exp)
            asked, killed = 0, False
        found.append(stages.ensure(stages.evaluate(exp), Store(tmp_path / name), exp))
        counts.append(asked)
    assert counts[1] == counts[0] - 2, "two had been asked before"
    assert found[0].content["files"] == found[1].content["files"] and found[0].summary == found[1].summary
    assert not list(tmp_path.rglob(".shared*"))
