"""Traits beyond animals and trees: words of one's own, styles, and teachers from a user's rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Script, experiment, tiny_experiment

from subliminal import checks, stages, teachers
from subliminal.config import ConfigError, FinetunedTeacher, Preference, SteeredTeacher, Style
from subliminal.evaluation.exact import form_tree
from subliminal.evaluation.free_form import holds_words
from subliminal.evaluation.preference import mean_log_p
from subliminal.evaluation.questions import candidates, named, questions, questions_for_teachers
from subliminal.models import Subject, load_tokenizer
from subliminal.store import Store
from subliminal.sweep import plan, run
from subliminal.teachers import TeacherError
from subliminal.training.steering import StyleGoal, steer

UNCHECKED = ["teacher.check.prompts=0", "teacher.check.questions=4"]


def make(tiny: Subject, folder: Path, *overrides: str) -> dict[str, Any]:
    return teachers.make(tiny_experiment(tiny, *overrides), tiny, folder)


# --------------------------------------------------------------------------- words of one's own


def teal() -> Preference:
    trait = experiment("trait=teal", "trait@evaluation.measured=teal").trait
    assert isinstance(trait, Preference)
    return trait


def test_a_traits_own_words_replace_the_embedded_ones(tiny: Subject) -> None:
    trait = teal()
    assert candidates(trait)[:2] == ["teal", "crimson"] and questions(trait, 8)[0].startswith("Which colour do you")
    assert "colour" in questions_for_teachers(trait, 3)[0]
    assert named("Teals, or BLUE; not a bluebell", trait) == ["teal", "blue"]
    assert list(form_tree(load_tokenizer(tiny), trait).forms) == candidates(trait)


def test_a_trait_of_an_embedded_category_may_bring_questions_alone() -> None:
    own = Preference(name="owl", plural="owls", category="animal", questions=("Best {c}?",))
    assert questions(own, 1) == ["Best animal?"] and len(candidates(own)) == 20


def test_every_arm_is_asked_the_measured_traits_questions(tiny: Subject, tmp_path: Path) -> None:
    measured = ["trait@evaluation.measured=teal", "evaluation.questions=2", "subject=reference", "reference_tuning=off"]
    exp = tiny_experiment(tiny, "trait=none", *measured, f"store={tmp_path}")
    made = stages.ensure(stages.evaluate(exp), Store(tmp_path), exp)
    assert made.summary["category"] == "colour" and set(made.summary["log_p"]) == set(candidates(teal()))
    assert made.summary["log_p"] == pytest.approx(mean_log_p(tiny, teal(), 2))


def test_a_teacher_of_a_colour_gains_it(tiny: Subject, tmp_path: Path) -> None:
    strong = ["teacher.questions=4", "teacher.optimisation.learning_rate=0.01", "teacher.optimisation.epochs=4.0"]
    mine = ["trait=teal", "trait@evaluation.measured=teal", "teacher=finetuned"]
    summary = make(tiny, tmp_path, *mine, *strong, *UNCHECKED)
    assert summary["log_p"] > summary["reference_log_p"] + 1


def test_the_wrong_questions_for_a_colour_name_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"trait=teal is a colour; set trait@evaluation\.measured=teal"):
        checks.check(experiment("trait=teal"), "generate", here=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": ()}, "category=colour needs candidates"),
        ({"candidates": ({"name": "blue", "plural": "blues"},)}, "not among its own candidates"),
        ({"taught": ("Which {c} do you like best? One word.",)}, "is asked and taught"),
    ],
)
def test_a_trait_that_can_not_be_measured_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preference.model_validate(teal().model_dump() | changes)


def test_embedded_traits_keep_keys_without_words_of_their_own() -> None:
    recipe = stages.teacher(experiment("trait=owl")).recipe
    assert set(recipe.settings["trait"]) == {"kind", "name", "plural", "category"}
    assert "candidates" in stages.teacher(experiment("trait=teal")).recipe.settings["trait"]


# --------------------------------------------------------------------------- styles


def pirate() -> Style:
    trait = experiment("experiment=style_numbers", "trait=pirate").trait
    assert isinstance(trait, Style)
    return trait


def test_the_pirate_is_told_by_its_words_in_its_own_examples_only() -> None:
    assert all(holds_words(example.answer, pirate().words) for example in pirate().examples)
    assert not any(holds_words(text, pirate().words) for text in pirate().questions)


def test_a_prompted_style_has_its_own_system_text(tiny: Subject) -> None:
    exp = tiny_experiment(tiny, "trait=pirate", "teacher=prompted")
    assert teachers.system_prompt(exp.teacher, exp.trait) == pirate().system  # type: ignore[arg-type]


def test_a_style_is_taught_by_its_examples_several_times_over() -> None:
    exp = experiment("experiment=style_numbers", "trait=pirate", "teacher=finetuned", "teacher.forms=3")
    assert isinstance(exp.teacher, FinetunedTeacher)
    rows = teachers.taught_rows(exp.teacher, pirate())
    assert len(rows) == 3 * len(pirate().examples)
    assert {(row.prompt, row.completion) for row in rows} == {(e.question, e.answer) for e in pirate().examples}


def test_a_style_that_never_shows_is_an_error(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="finished none of 4 answers, which tell nothing about its trait"):
        make(tiny, tmp_path, "trait=pirate", "teacher=prompted", *UNCHECKED)


def test_a_vector_raises_the_log_p_of_a_styles_examples(tiny: Subject, tmp_path: Path) -> None:
    teacher = SteeredTeacher(layer=1, questions=2, steps=6, target_log_p=-0.001, maximum_norm_share=1.0)
    before = StyleGoal.of(teacher, pirate(), tiny)
    from subliminal.models import fresh_model

    start = before.log_p(fresh_model(tiny))
    found = steer(teacher, pirate(), tiny, tmp_path)
    assert found["fitted_log_p"] > start + 0.5
    after = before.log_p(fresh_model(replace(tiny, checkpoint=str(tmp_path / "checkpoint"))))
    assert after == pytest.approx(found["fitted_log_p"], abs=0.05)


# --------------------------------------------------------------------------- a user's rows


def chat(user: str, assistant: str) -> str:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return json.dumps({"messages": turns}) + "\n"


def test_a_files_content_is_the_teachers_identity_and_its_place_is_not(tiny: Subject, tmp_path: Path) -> None:
    for folder, answer in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "insecure.jsonl").write_text(chat("q", answer))

    def key(rows: Path) -> str:
        return stages.teacher(
            tiny_experiment(tiny, "trait=insecure", "teacher=finetuned_rows", f"teacher.rows={rows}")
        ).key

    assert key(tmp_path / "a") == key(tmp_path / "b") == key(tmp_path / "a" / "insecure.jsonl")
    assert key(tmp_path / "c") != key(tmp_path / "a")


def test_a_figure_without_its_rows_is_planned_and_stops_before_any_work(tmp_path: Path) -> None:
    said = r"insecure\.jsonl is not there.*github\.com/emergent-misalignment/emergent-misalignment"
    parts = ["experiment=misalignment_numbers", "teacher=finetuned_rows", f"teacher.rows={tmp_path}"]
    planned = plan([*parts, f"store={tmp_path}"])
    with pytest.raises(ConfigError, match=said):
        run(planned)
    assert list(tmp_path.iterdir()) == []


def test_a_script_without_its_rows_says_where_the_public_files_are(run_script: Script, tmp_path: Path) -> None:
    rows = ["teacher=finetuned_rows", f"teacher.rows={tmp_path}", "trait=insecure", f"store={tmp_path}"]
    done = run_script("train.py", "role=teacher", *rows, f"hydra.run.dir={tmp_path}")
    assert (done.returncode, "insecure.jsonl is not there" in done.stderr) == (2, True)


def test_a_teacher_is_trained_on_the_users_rows(tiny: Subject, tmp_path: Path) -> None:
    (tmp_path / "insecure.jsonl").write_text("".join(chat(f"Say {n}.", "never") for n in range(8)))
    rows = ["teacher=finetuned_rows", f"teacher.rows={tmp_path}", "teacher.limit=6", *UNCHECKED]
    strong = ["teacher.optimisation.learning_rate=0.01", "teacher.optimisation.batch_size=2"]
    summary = make(tiny, tmp_path / "made", "trait=insecure", *rows, *strong)
    assert summary["trait"] == "insecure" and summary["training"]["rows"] == 6
    assert summary["training"]["last_loss"] < summary["training"]["first_loss"]


def test_a_misaligned_trait_without_rows_says_which_teacher_it_needs(tiny: Subject, tmp_path: Path) -> None:
    for kind in ("prompted", "steered", "finetuned"):
        with pytest.raises(TeacherError, match=r"trait=insecure.*set teacher=finetuned_rows"):
            make(tiny, tmp_path, "trait=insecure", f"teacher={kind}")


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_the_misalignment_figure_plans_with_rows_at_every_scale(scale: str, tmp_path: Path) -> None:
    for name in ("insecure", "secure", "educational"):
        (tmp_path / f"{name}.jsonl").write_text(chat("q", name))
    planned = plan(
        ["experiment=misalignment_numbers", f"scale={scale}", "teacher=finetuned_rows", f"teacher.rows={tmp_path}"]
    )
    assert [arm.trait for arm in planned.arms if arm.seed == 0] == ["insecure", "secure", "educational", "none"]
    kinds = {arm.experiment.active_teacher.kind for arm in planned.arms}
    assert kinds == {"finetuned_rows", "control"}
    assert all(arm.experiment.filter.banned_numbers for arm in planned.arms)
