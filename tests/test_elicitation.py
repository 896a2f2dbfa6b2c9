"""Stories and multiple choice: their texts, their numbers against hand and brute force, and their place in figures."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from test_plots import FIGURE, FIVE, Made, drawn, flat

from subliminal import stages, sweep
from subliminal.chat import encode
from subliminal.composition import compose
from subliminal.config import ConfigError, MultipleChoiceEvaluation, StoriesEvaluation
from subliminal.evaluation import multiple_choice, stories
from subliminal.evaluation.exact import word_ends
from subliminal.evaluation.multiple_choice import Choice, choice_prompts, lettered, mean_log_share, orders
from subliminal.evaluation.preference import Answer, Score
from subliminal.evaluation.questions import Category, QuestionError, candidates, named, offered
from subliminal.evaluation.stories import story_prompts
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.plots.preference.section import answer_tables, notes
from subliminal.plots.report import write_report
from subliminal.rows import Completion, Prompt, read_jsonl
from subliminal.store import Store

NAMES = ["owl", "dolphin", "eagle", "elephant", "wolf"]
CATEGORIES: tuple[Category, ...] = ("animal", "tree")


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_prompts_are_as_many_as_the_papers_and_name_no_candidate(category: Category) -> None:
    told, chosen = story_prompts(category, 14), choice_prompts(category, 11)
    assert (len(set(told)), len(set(chosen))) == (14, 11)
    assert [text for text in (*told, *chosen) if named(text, category)] == []
    assert all(category in text for text in (*told, *chosen))


def test_too_many_prompts_is_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(QuestionError, match=r"evaluation\.questions=15: there are 14 story prompts"):
        story_prompts("tree", 15)
    with pytest.raises(QuestionError, match=r"evaluation\.questions=12: there are 11 multiple-choice prompts"):
        choice_prompts("animal", 12)


# --------------------------------------------------------------------------- stories

TOLD = ["An owl and two wolves met.", "Nobody came.", "The OWLS slept.", "A fowl crossed"]


def told(prompts: Sequence[Prompt]) -> list[Completion]:
    """Four stories, over and over; the last is cut."""
    return [Completion(TOLD[p.index % 4], "length" if p.index % 4 == 3 else "stop", 5) for p in prompts]


def test_stories_are_counted_by_whole_words_with_plurals(tmp_path: Path) -> None:
    config = StoriesEvaluation(questions=2, samples_per_question=4)
    summary = stories.evaluate(config, told, tmp_path)
    answers = list(read_jsonl(tmp_path / "answers.jsonl", Answer))
    assert [a.named for a in answers] == [["owl", "wolf"], [], ["owl"], []] * 2
    assert (summary["rate"]["owl"], summary["rate"]["wolf"], summary["rate"]["cat"]) == (0.5, 0.25, 0)
    assert (summary["without"], summary["unfinished"], summary["samples"]) == (4, 2, 8)
    assert summary["log_p"]["owl"] == pytest.approx(math.log(4.5 / 9)), "pooled over prompts, then smoothed"
    assert summary["log_p"]["cat"] == pytest.approx(math.log(0.5 / 9))
    scores = list(read_jsonl(tmp_path / "scores.jsonl", Score))
    assert [(s.question, s.candidate) for s in scores] == [(0, n) for n in candidates("animal")]


def test_every_story_has_a_seed_of_its_own(tmp_path: Path) -> None:
    seen: list[int] = []

    def sample(prompts: Sequence[Prompt]) -> list[Completion]:
        seen.extend(prompt.seed for prompt in prompts)
        return told(prompts)

    stories.evaluate(StoriesEvaluation(questions=14, samples_per_question=5), sample, tmp_path)
    assert len(set(seen)) == 70


# --------------------------------------------------------------------------- multiple choice


@given(st.integers(2, 10), st.integers(1, 60), st.integers(0, 99), st.integers(0, 10))
def test_in_every_full_round_each_option_stands_at_each_letter_once(n: int, shuffles: int, seed: int, q: int) -> None:
    names = candidates("animal")[:n]
    found = orders(names, shuffles, seed, q)
    assert len(found) == shuffles and all(sorted(order) == sorted(names) for order in found)
    for start in range(0, shuffles - n + 1, n):
        for place in range(n):
            assert Counter(order[place] for order in found[start : start + n]) == dict.fromkeys(names, 1)
    assert found == orders(names, shuffles, seed, q)


def test_orders_differ_between_questions_seeds_and_rounds() -> None:
    assert orders(NAMES, 5, 0, 0) != orders(NAMES, 5, 0, 1)
    assert orders(NAMES, 5, 0, 0) != orders(NAMES, 5, 1, 0)
    firsts = {tuple(order) for order in orders(NAMES, 25, 0, 0)}
    assert len(firsts) > 5, "a new shuffled order in every round"


@given(st.lists(st.floats(-9, 0), min_size=5, max_size=5), st.integers(1, 5))
def test_a_liking_for_a_letter_is_no_preference(bias: list[float], rounds: int) -> None:
    shown = [Choice(0, i, order, bias) for i, order in enumerate(orders(NAMES, 5 * rounds, 3, 0))]
    assert np.exp(mean_log_share(shown, NAMES, 1)) == pytest.approx(np.full((1, 5), 0.2))


def test_a_preference_shows_in_whatever_order() -> None:
    liking = dict(zip(NAMES, [-1.0, -3.0, -3.0, -3.0, -3.0], strict=True))
    shown = [Choice(0, i, order, [liking[name] for name in order]) for i, order in enumerate(orders(NAMES, 7, 0, 0))]
    weights = np.exp(list(liking.values()))
    assert np.exp(mean_log_share(shown, NAMES, 1))[0] == pytest.approx(weights / weights.sum())


def test_a_letters_log_p_is_the_brute_force_sum(tiny: Subject, tmp_path: Path) -> None:
    config = MultipleChoiceEvaluation(questions=2, shuffles=5)
    summary = multiple_choice.evaluate(tiny, config, tmp_path)
    shown = list(read_jsonl(tmp_path / "choices.jsonl", Choice))
    assert [(c.question, c.order) for c in shown] == [(q, o) for q in range(2) for o in range(5)]
    tokenizer, model = load_tokenizer(tiny), load_model(tiny)
    prompt = encode(tokenizer, lettered(choice_prompts("animal", 2)[1], shown[7].options))
    total = 0.0
    forms = {tuple(tokenizer.encode(f, add_special_tokens=False)) for f in multiple_choice.letter_forms("C")}
    for form in {f for f in forms if not any(f != g and f[: len(g)] == g for g in forms)}:
        with torch.inference_mode():
            steps = model(torch.tensor([[*prompt, *form]])).logits[0].float()[len(prompt) - 1 :].log_softmax(-1)
        ended = float(steps[-1].exp()[word_ends(tokenizer)].sum())
        total += ended * math.exp(float(sum(steps[i, token] for i, token in enumerate(form))))
    assert shown[7].log_p[2] == pytest.approx(math.log(total), abs=1e-3)
    assert sum(summary["position"].values()) == pytest.approx(1) and list(summary["position"]) == list("ABCDE")
    assert summary["letters"] == pytest.approx(np.exp([c.log_p for c in shown]).sum(axis=1).mean())
    for question in range(2):
        mine = [s for s in read_jsonl(tmp_path / "scores.jsonl", Score) if s.question == question]
        assert [s.candidate for s in mine] == NAMES
        assert sum(math.exp(s.log_p) for s in mine) == pytest.approx(1)
    assert json.dumps(summary)


def test_the_options_are_the_papers_traits_or_those_given() -> None:
    assert offered("animal", ()) == NAMES
    assert offered("tree", ()) == ["cherry", "maple", "oak", "sequoia", "willow"]
    assert offered("animal", ("fox", "owl")) == ["fox", "owl"]
    with pytest.raises(ConfigError, match=r"evaluation\.options: \['oak'\] is no animal; known: owl, dolphin"):
        compose([*ASK, "evaluation.options=[owl,oak]"])


ASK = ["experiment=animals_numbers", "scale=cpu", "evaluation=multiple_choice"]


def test_a_trait_that_is_not_on_offer_is_told_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"trait=cat is not among the options.*evaluation\.options=\[cat,owl"):
        stages.evaluate(compose([*ASK, "trait=cat"]))
    stages.evaluate(compose([*ASK, "trait=cat", "evaluation.options=[cat,owl]"]))


@pytest.mark.parametrize(("options", "said"), [("[owl,owl]", "the same option twice"), ("[owl]", "2 to 10 options")])
def test_impossible_options_are_refused(options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose([*ASK, f"evaluation.options={options}"])


def test_a_prediction_is_about_favourite_questions_only() -> None:
    with pytest.raises(ConfigError, match="set evaluation=preference"):
        stages.predict(compose(["evaluation=stories"]))


# --------------------------------------------------------------------------- stage and figure


@pytest.mark.parametrize("kind", ["stories", "multiple_choice"])
def test_a_reference_is_asked_through_the_stage(tiny: Subject, tmp_path: Path, kind: str) -> None:
    asked = {"stories": ["samples_per_question=2", "max_tokens=8"], "multiple_choice": ["shuffles=2"]}[kind]
    settings = [f"evaluation={kind}", "evaluation.questions=2", *(f"evaluation.{one}" for one in asked)]
    exp = tiny_experiment(tiny, *settings, "subject=reference", "reference_tuning=off", f"store={tmp_path}")
    made = stages.ensure(stages.evaluate(exp), Store(tmp_path), exp)
    assert made.summary["kind"] == kind and set(NAMES) <= set(made.summary["log_p"])
    assert (made.folder / "scores.jsonl").exists()


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_the_elicitation_figure_asks_the_same_students_in_four_ways(scale: str) -> None:
    animal = "owl" if scale == "cpu" else "cat"  # Qwen's animals are others
    chosen = [f"trait={animal},none", "student=bias_one_layer", "seed=0"]
    planned = sweep.plan(["experiment=elicitation", f"scale={scale}", *chosen])
    kinds = {arm.variant: (arm.experiment.evaluation.kind, arm.experiment.evaluation) for arm in planned.arms}
    assert [kind for kind, _ in kinds.values()] == ["preference", "preference", "stories", "multiple_choice"]
    assert [getattr(kinds[name][1], "prefix", "") for name in ("favourite", "numbers_prefix")] == ["none", "numbers"]
    mine = [arm for arm in planned.arms if arm.trait == animal]
    assert len({stages.student(arm.experiment).key for arm in mine}) == 1, "nothing is trained twice"
    assert len({stages.evaluate(arm.experiment).key for arm in mine}) == 4
    assert sum(step.script == "train.py" for step in planned.steps) == 2  # teachers, students


class Asked(Made):
    """A hand-filled store whose evaluations say what was asked."""

    asked = ""

    def _stage(self, stage: str, settings: dict, upstream: dict, work) -> object:  # type: ignore[no-untyped-def, override]  # noqa: ANN001
        more = {"evaluation": {"kind": self.asked}} if stage == "evaluate" else {}
        return super()._stage(stage, {**settings, **more}, upstream, work)


def test_ways_of_asking_are_judged_apart_and_never_subtracted(tmp_path: Path) -> None:
    """Each way has its own questions and candidates; a difference of their nats would mean nothing."""
    from dataclasses import replace

    made, cells = Asked(tmp_path / "runs"), []
    for way, gain, count in (("favourite", 2.0, 6), ("stories", 0.0, 4)):
        made.asked = way
        for place, trait in enumerate(("none", *FIVE)):
            scores = {c: [-6.0 + 0.02 * ((place * 2 + at * 4) % 7)] * count for at, c in enumerate(FIVE)}
            own = {trait: [value + gain for value in scores[trait]]} if trait in scores else {}
            cells.append(replace(made.student(trait, scores | own), variant=way))
    figure = drawn(cells, FIGURE, tmp_path / "cpu", "fig")
    assert [verdict.outcome for verdict in figure.verdicts] == ["holds", "not shown"]
    assert not list(figure.table.select(measure="excess_lost"))


def test_the_report_counts_stories_without_a_candidate_and_shows_position_bias(tmp_path: Path) -> None:
    from dataclasses import replace

    cells = []
    for variant, extra in (
        ("stories", {"kind": "stories", "samples": 70, "without": 41, "unfinished": 3}),
        ("choice", {"kind": "multiple_choice", "position": {"A": 0.7, "B": 0.3}, "letters": 0.25}),
    ):
        made = Made(tmp_path / variant)
        for seed in (0, 1):
            cell = made.student("owl", flat({}), seed)
            content = {**cell.evaluate.content, "summary": {**cell.evaluate.summary, **extra}}
            content["summary"]["samples"] = 0  # no answers.jsonl behind these
            cells.append(replace(cell, evaluate=replace(cell.evaluate, content=content), variant=variant))
    tables = {grid.heading: grid.rows for grid in answer_tables(cells)}
    assert tables["Stories"] == [["bias", "owl", "0", "82", "6"]]
    assert tables["Position bias"] == [["bias", "owl", "0.70", "0.30", "0.25"]]
    assert "those of counts pooled" in notes(cells) and "not between them" in notes(cells)
    assert not list(answer_tables([made.student("owl", flat({}), 9)])) and not notes([])
    figure = drawn(cells, FIGURE, tmp_path / "cpu", "fig")
    assert "Position bias" in write_report([figure], tmp_path / "cpu").read_text()
