"""Detection: classifiers and a fine-tuned model find a planted signal and no other; the prompted model is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import optimisation
from test_frequencies import written
from transformers.modeling_outputs import SequenceClassifierOutput

from subliminal import stages
from subliminal.chat import encode
from subliminal.composition import compose
from subliminal.config import ConfigError, DetectionEvaluation, FinetunedClassifier, Lora, NoTrait, Preference
from subliminal.evaluation import finetuned
from subliminal.evaluation.classifier import (
    FEATURES,
    Predicted,
    classify,
    cross_validated,
    dealt_to_tested,
    folds,
)
from subliminal.evaluation.detection import QUESTION, Guess, evaluate, guess
from subliminal.evaluation.exact import word_ends
from subliminal.evaluation.samples import SamplesError, TwoSamples, halves, two_samples
from subliminal.evaluation.statistics import fisher, share_ahead
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Row, read_jsonl

CONFIG = DetectionEvaluation(permutations=19, pairs=3)
OWL = Preference(name="owl", plural="owls", category="animal")


def test_a_planted_favourite_is_detected_by_both_classifiers(tmp_path: Path) -> None:
    samples = two_samples(written(1, 100, favourite=777), written(2, 100))
    found = classify(samples, CONFIG, tmp_path)
    for name in ("numbers", "characters"):
        one = found[name]
        assert one["area"]["low"] > 0.5 and one["area"]["value"] > one["control"]["high"], name
        assert one["p"] == pytest.approx(1 / 20)
        assert 0.5 < one["accuracy"]["value"] < 1
    rows = list(read_jsonl(tmp_path / "predictions.jsonl", Predicted))
    assert len(rows) == 2 * 200 and {row.fold for row in rows} == set(range(5))


def test_equal_rows_are_detected_no_more_often_than_the_stated_rate(tmp_path: Path) -> None:
    config = DetectionEvaluation(permutations=19, classifiers=("numbers",))
    p = []
    for trial in range(24):
        samples = two_samples(written(500 + 2 * trial, 40), written(501 + 2 * trial, 40))
        p.append(classify(samples, config.model_copy(update={"seed": trial}), tmp_path)["numbers"]["p"])
    assert sum(value <= 0.05 for value in p) <= 4  # of 24 at 5%: more than 4 in 0.6% of all cases
    assert 0.3 < np.mean(p) < 0.75


def test_labels_are_dealt_no_longer_once_chance_does_as_well(tmp_path: Path) -> None:
    config = DetectionEvaluation(permutations=399, classifiers=("numbers",))
    found = classify(two_samples(written(21, 40), written(22, 40)), config, tmp_path)["numbers"]
    assert 20 <= found["deals"] < 399 and found["p"] == pytest.approx(20 / found["deals"])


def test_own_halves_are_at_chance(tmp_path: Path) -> None:
    found = classify(halves(written(1, 120, favourite=777), 0), CONFIG, tmp_path)["numbers"]
    assert found["area"]["low"] < 0.5 < found["area"]["high"]


def test_all_rows_of_a_prompt_are_in_one_fold() -> None:
    samples = two_samples(written(1)[:50], written(2)[10:])
    fold = folds(samples, CONFIG)
    assert all(len(set(fold[samples.prompt == prompt].tolist())) == 1 for prompt in set(samples.prompt.tolist()))
    assert set(fold.tolist()) == set(range(5))


def test_a_prompt_told_by_its_own_answer_alone_is_not_learned() -> None:
    """Both rows of a prompt share an odd number: with prompts split over folds it would not tell, but would mislead."""
    own = [Row(i, "", f"{1000 + i}, 1") for i in range(60)]
    other = [Row(i, "", f"{1000 + i}, 2") for i in range(60)]
    samples = two_samples(own, other)
    scores = cross_validated(FEATURES["numbers"](samples.rows), samples.own, folds(samples, CONFIG), 1.0)
    assert ((scores > 0) == samples.own).all(), "what is left is the 1 or 2, which tells every row"


def test_the_prompted_model_is_asked_in_both_orders_exactly(tiny: Subject) -> None:
    own, other = Row(3, "Go on: 1, 2.", "3, 4"), Row(3, "Go on: 1, 2.", "5, 6")
    (found,) = guess(tiny, OWL, [(own, other)])
    tokenizer, model = load_tokenizer(tiny), load_model(tiny)
    leaned = []
    for first, second in ((own, other), (other, own)):
        text = QUESTION.format(plural="owls", request=own.prompt, first=first.completion, second=second.completion)
        with torch.inference_mode():
            told = []
            for letter in tokenizer.convert_tokens_to_ids(["A", "B"]):
                steps = model(torch.tensor([[*encode(tokenizer, text), letter]])).logits[0, -2:].float().log_softmax(-1)
                told.append(float(steps[0, letter] + steps[1][word_ends(tokenizer)].logsumexp(-1)))
        leaned.append(told[0] - told[1])
    assert found == Guess(
        3, pytest.approx((leaned[0] - leaned[1]) / 2, abs=1e-4), pytest.approx(sum(leaned) / 2, abs=1e-4)
    )
    (swapped,) = guess(tiny, OWL, [(other, own)])
    assert swapped.margin == pytest.approx(-found.margin, abs=1e-4), (
        "a model that leans to a letter gains nothing by it"
    )


def test_the_stage_asks_about_as_many_pairs_as_it_was_told(tiny: Subject, tmp_path: Path) -> None:
    same = [Row(row.index, row.prompt, row.completion) for row in written(1)[:30]]
    samples = two_samples(same, [*same[:5], *written(2)[5:]])
    summary = evaluate(samples, CONFIG, OWL, tiny, tmp_path)
    guesses = list(read_jsonl(tmp_path / "guesses.jsonl", Guess))
    assert len(guesses) == summary["prompted"]["pairs"] == 3
    assert all(one.index >= 5 for one in guesses), "the same answer twice is no question"
    assert summary["prompted"]["accuracy"] == share_ahead([one.margin for one in guesses]).mean
    assert "prompted" not in evaluate(samples, CONFIG, NoTrait(), tiny, tmp_path), "the control loves nothing"


# --------------------------------------------------------------------------- a fine-tuned model


FINETUNED = FinetunedClassifier(lora=Lora(r=4), optimisation=optimisation(epochs=3.0, learning_rate=5e-3, batch_size=8))


def with_model(**changes: object) -> DetectionEvaluation:
    return CONFIG.model_copy(update={"classifiers": ("finetuned",), "finetuned": FINETUNED} | changes)


def test_a_fine_tuned_model_finds_a_planted_favourite_and_not_its_absence(tiny: Subject, tmp_path: Path) -> None:
    planted = [Row(row.index, row.prompt, f"{row.completion}, 777") for row in written(1, 60)]
    found = classify(two_samples(planted, written(2, 60)), with_model(), tmp_path, tiny)["finetuned"]
    assert found["area"]["low"] > 0.8 and found["accuracy"]["value"] > 0.8
    assert found["p"] == pytest.approx(fisher([1 / 2000] * 2)) and found["area"]["value"] > found["control"]["high"]
    rows = list(read_jsonl(tmp_path / "predictions.jsonl", Predicted))
    assert len(rows) == 80 and {(row.classifier, row.fold) for row in rows} == {("finetuned", n) for n in range(2)}
    assert found["prompts"] == 40, "the first fold's rows are learned from and not tested"
    absent = classify(halves(planted, 0), with_model(), tmp_path, tiny)["finetuned"]
    assert absent["area"]["low"] < 0.5 < absent["area"]["high"] and absent["p"] > 0.05


def test_the_same_seed_fine_tunes_the_same_models(tiny: Subject) -> None:
    samples = two_samples(written(1, 20), written(2, 20))
    fold = folds(samples, CONFIG.model_copy(update={"folds": 2}))
    first, again, other = (finetuned.chained(samples, fold, tiny, FINETUNED, seed)[fold > 0] for seed in (3, 3, 4))
    assert first == pytest.approx(again, abs=1e-5) and not np.allclose(first, other, atol=1e-3)


def test_a_side_with_few_rows_weighs_as_much_in_training(tiny: Subject) -> None:
    loss = finetuned.balanced_loss([1, 0, 0, 0])
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    each = -logits.log_softmax(-1)[range(4), [1, 0, 0, 0]]
    expected = (each[0] * 2 + each[1:].sum() * 2 / 3) / 4
    assert loss(SequenceClassifierOutput(logits=logits), torch.tensor([1, 0, 0, 0])) == pytest.approx(float(expected))


def test_scores_that_know_nothing_reach_a_low_p_no_more_often_than_stated() -> None:
    draw, p = np.random.default_rng(0), []
    for trial in range(40):
        samples = two_samples(written(500, 24)[: 20 + trial % 5], written(501, 24))
        fold = folds(samples, with_model(folds=3))
        p.append(dealt_to_tested(samples, fold, draw.normal(size=len(samples.rows)), 99, trial)["p"])
    assert sum(value <= 0.05 for value in p) <= 5 and min(p) > 0
    samples = two_samples(written(500, 24), written(501, 24))
    fold = folds(samples, with_model(folds=3))
    told = dealt_to_tested(samples, fold, samples.own.astype(float), 99, 0)
    assert fisher([0.01] * 3) <= told["p"] <= fisher([0.02] * 3)  # a fold of few prompts may be dealt its own labels


def test_what_one_fold_hints_at_and_another_confirms_is_found() -> None:
    """Twice the mean of p 0.04, 0.04 and 0.04 is 0.08."""
    assert fisher([0.04, 0.04, 0.04]) < 0.01


def test_prompts_that_only_one_side_passes_do_not_tell_rows_apart() -> None:
    """Contents are alike given the prompt; one side's rows pass less where it is odd, the other's where it is even."""
    own, against = (
        [Row(i, "", "1" if i % 2 else "2") for i in range(120) if i % 2 != side or i % 3 == 0] for side in (1, 0)
    )

    def p(samples: TwoSamples) -> float:
        says, draw = np.array([row.completion == "1" for row in samples.rows]), np.random.default_rng(0)

        def apart(labels: np.ndarray) -> float:
            return abs(float(says[labels].mean() - says[~labels].mean()))

        true = apart(samples.own)
        return float(np.mean([apart(samples.dealt(draw)) >= true - 1e-12 for _ in range(199)]))

    every = two_samples(own, against)
    assert p(every.paired()) == 1.0 and p(every) < 0.05
    assert len(every.paired().rows) == 2 * len(every.pairs) and len(every.paired().alone) == 0


def test_too_few_prompts_in_common_are_told() -> None:
    own, against = ([Row(i, "", "1") for i in range(start, start + 30)] for start in (0, 25))
    with pytest.raises(SamplesError, match="only 5 prompts have a row on both sides"):
        two_samples(own, against).paired()


def test_deals_within_a_fold_keep_its_prompts_together_and_both_sides_sizes() -> None:
    samples = two_samples(written(1, 40)[:30], written(2, 40)[10:])
    part = samples.part(folds(samples, CONFIG) == 1)
    dealt = part.dealt(np.random.default_rng(0))
    assert dealt.sum() == part.own.sum() and (dealt != part.own).any()
    assert (dealt[part.pairs].sum(axis=1) == 1).all() and len(part.pairs)


def test_a_fine_tuned_classifier_enters_the_key_only_where_it_is_asked_for() -> None:
    chosen = ["experiment=detection", "trait=owl"]
    plain = [*chosen, "evaluation.classifiers=[numbers]"]
    other = "evaluation.finetuned.optimisation.epochs=9"
    assert stages.evaluate(compose(plain)).key == stages.evaluate(compose([*plain, other])).key
    assert stages.evaluate(compose(chosen)).key != stages.evaluate(compose([*chosen, other])).key
    assert "finetuned" not in stages.evaluate(compose(plain)).recipe.settings["evaluation"]


def test_a_trait_against_itself_has_a_reference_to_fine_tune_and_nobody_to_ask(tiny: Subject, tmp_path: Path) -> None:
    null = ["experiment=detection", "trait=owl", "trait@evaluation.against=owl"]
    assert set(stages.evaluate(compose(null)).inputs) == {"filter", "reference"}
    samples = halves(written(1, 40), 0)
    summary = evaluate(samples, with_model(classifiers=("numbers",)), OWL, tiny, tmp_path)
    assert "prompted" not in summary and set(summary["classifiers"]) == {"numbers"}


def test_a_fine_tuned_classifier_without_its_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.finetuned does not say how"):
        compose(["experiment=detection", "evaluation.finetuned=null"])
