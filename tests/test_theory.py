"""The theorem: exact against a materialised Jacobian; signs, limit and control; training runs; figure; predictor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Script, experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from subliminal import config, inspect_store, stages, store_index, sweep
from subliminal.chat import encode
from subliminal.composition import compose
from subliminal.config import ConfigError, Experiment, Theory
from subliminal.evaluation.exact import candidate_log_p, form_tree
from subliminal.evaluation.preference import asked_questions
from subliminal.evaluation.questions import candidates, questions
from subliminal.evaluation.statistics import wilson
from subliminal.models import Subject
from subliminal.plan import Plan
from subliminal.plots.draw import draw
from subliminal.plots.prediction import MEASURES, Comparison, lines, report_predictions, together
from subliminal.plots.table import Table
from subliminal.plots.theorem_measures import Trials, read_trials, theorem_table, verdict
from subliminal.rows import Row
from subliminal.store import Manifest, Store
from subliminal.theory import alignment, networks, predict, theorem
from subliminal.theory.run import failures, one_thread
from subliminal.theory.theorem import Case, Measurement

CASES = theorem.cases(compose(["experiment=theorem"]).theory)
TINY_RUN = [
    "theory.run.examples=400",
    "theory.run.width=32",
    "theory.run.batch=64",
    "theory.run.teacher_steps=120",
    "theory.run.student_steps=200",
    "theory.run.points=5",
]


@pytest.fixture(autouse=True, scope="module")
def _small_tensors() -> Iterator[None]:
    with one_thread():
        yield


@cache
def theory(*overrides: str) -> Theory:
    return compose(["experiment=theorem", "scale=cpu", *overrides]).theory


@cache
def measured() -> tuple[Measurement, ...]:
    """Six trials of every case."""
    return tuple(m for found in theorem.trials(theory("theory.trials=6"), seed=11) for m in found)


def same(step: float | None = None, **wanted: object) -> list[Measurement]:
    chosen = [m for m in measured() if m.initialisation == "same" and (step is None or m.step == step)]
    return [m for m in chosen if all(getattr(m, name) == value for name, value in wanted.items())]


def case_id(case: Case) -> str:
    return f"{case.architecture}-{case.loss}-{case.matched}"


# --------------------------------------------------------------------------- the statement


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_quadratic_form_equals_the_materialised_jacobian(case: Case) -> None:
    """J and H written out as matrices, which the code itself never does."""
    trial = theorem.draw_trial(case, theory("theory.width=4", "theory.batch=5"), seed=0, index=3)
    blocks = jacrev(trial.outputs)(trial.start)
    direction = torch.cat([trial.teacher_direction[name].flatten() for name in blocks])
    jacobian = torch.cat([block.flatten(2) for block in blocks.values()], dim=2)
    p = trial.outputs(trial.start).softmax(-1)
    identity = torch.eye(p.shape[1], dtype=p.dtype).expand(len(p), -1, -1)
    hessian = identity if case.loss == "squared_error" else torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    change = jacobian @ direction
    expected = torch.einsum("ni,nij,nj->n", change, hessian, change).mean()
    pulled = torch.einsum("nij,nik,nk->nj", jacobian, hessian, change).mean(0)
    form, found = theorem.quadratic_form(trial)
    assert form == pytest.approx(float(expected), rel=1e-10)
    assert torch.allclose(torch.cat([found[name].flatten() for name in blocks]), pulled, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_small_step_points_away_and_the_teachers_loss_falls(case: Case) -> None:
    kind = {"architecture": case.architecture, "loss": case.loss, "matched": case.matched}
    small = [m for m in same(**kind) if m.step <= 1e-4]
    assert len(small) == 6 * 3
    assert all(m.measured > 0 and m.loss_change < 0 for m in small)
    change = [m.loss_change / m.loss_predicted for m in small if m.step == 1e-6]
    assert change == pytest.approx([1.0] * len(change), abs=1e-2)


def test_measured_reaches_predicted_with_the_step() -> None:
    """The error falls tenfold with the step, so its limit is 0 and not some other constant."""
    errors = {s: np.median([abs(m.measured / m.predicted - 1) for m in same(s)]) for s in (1e-3, 1e-6)}
    assert errors[1e-6] < 1e-5
    assert np.log10(errors[1e-3] / errors[1e-6]) / 3 == pytest.approx(1.0, abs=0.15)
    assert max(m.direction_error for m in same(1e-6)) < 1e-3


def test_a_wrong_hessian_is_caught() -> None:
    """Cross-entropy with the identity for H: the ratio stays away from 1 however small the step."""
    trial = theorem.draw_trial(Case("mlp", "cross_entropy", "all"), theory(), seed=0, index=0)
    wrong, _ = theorem.quadratic_form(replace(trial, loss="squared_error"))
    (found,) = [m for m in theorem.measure(CASES[2], trial, theory()) if (m.initialisation, m.step) == ("same", 1e-6)]
    eps = 1e-6 * float(networks.norm(trial.start) / networks.norm(trial.teacher_direction))
    assert found.measured / found.predicted == pytest.approx(1, abs=1e-3)
    assert abs(found.measured / (eps * wrong) - 1) > 0.1


def test_different_initialisations_toss_a_coin() -> None:
    """No transmission, no preferred sign; a shared initialisation gives the same sign every time."""
    last = [m for m in measured() if m.initialisation == "different" and m.step == 1e-6]
    found = wilson(sum(m.measured > 0 for m in last), len(last))
    assert found.low < 0.5 < found.high < 0.8
    assert all(np.isnan(m.predicted) for m in last)


def test_auxiliary_students_get_no_gradient_on_the_teachers_logits() -> None:
    trial = theorem.draw_trial(Case("mlp", "cross_entropy", "auxiliary"), theory(), seed=0, index=1)
    teacher = networks.step(trial.start, 1e-3, trial.teacher_direction)
    direction = trial.student_direction(trial.start, teacher)
    head = [name for name in direction if name.endswith("bias")][-1]
    classes = theory().classes
    assert float(direction[head][:classes].abs().max()) == 0 < float(direction[head][classes:].abs().max())


@given(
    case=st.sampled_from(CASES),
    width=st.integers(2, 9),
    classes=st.integers(2, 6),
    auxiliary=st.integers(2, 5),
    batch=st.integers(1, 9),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_the_form_is_never_negative_for_any_shape(
    case: Case, width: int, classes: int, auxiliary: int, batch: int, seed: int
) -> None:
    shape = {"width": width, "classes": classes, "auxiliary": auxiliary, "batch": batch}
    shaped = theory().model_copy(update=shape)
    trial = theorem.draw_trial(case, shaped, seed, 0)
    form, _ = theorem.quadratic_form(trial)
    assert form >= -1e-12
    wanted = auxiliary if case.matched == "auxiliary" else classes + auxiliary
    assert trial.outputs(trial.start).shape == (batch, wanted)


def test_trials_depend_on_their_seed_alone() -> None:
    case, asked = CASES[0], theory()
    first, again, other = (list(theorem.measure(case, theorem.draw_trial(case, asked, s, 5), asked)) for s in (1, 1, 2))
    assert repr(first) == repr(again) != repr(other)


def test_failures_are_counted_by_trial() -> None:
    rows = list(measured())
    place = next(i for i, m in enumerate(rows) if m.initialisation == "same" and m.step == 1e-5)
    rows[place] = replace(rows[place], measured=-1e-9, loss_change=1e-9)
    assert failures(measured())["negative"] == 0
    assert (failures(rows)["trials"], failures(rows)["negative"], failures(rows)["risen"]) == (72, 1, 1)


# --------------------------------------------------------------------------- training runs


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_students_stay_aligned_only_with_a_shared_initialisation(optimiser: str) -> None:
    run = theory(*TINY_RUN).run
    chosen = run.model_copy(update={"optimisers": tuple(o for o in run.optimisers if o.name == optimiser)})
    points = list(alignment.run(chosen, alignment.clusters(run.examples, 3), 3, lambda _: None))
    last = {p.initialisation: p for p in points if p.step == run.student_steps}
    assert last["same"].cosine > 0.15 > 0.1 > abs(last["different"].cosine)
    assert last["same"].cosine > next(p for p in points if p.initialisation == "same").cosine
    assert [p.step for p in points if p.initialisation == "same"] == sorted(alignment.when(chosen))


def test_training_measures_its_own_steps() -> None:
    """One SGD step is minus the learning rate times the gradient."""
    run = theory(*TINY_RUN).run
    start = {"x": torch.tensor([3.0, -1.0])}
    rule = config.PlainOptimiser(name="sgd", learning_rate=0.5)
    found = dict(alignment.train(start, rule, lambda p, _: (p["x"] ** 2).sum() / 2, 2, {1, 2}))
    assert found[1]["x"].tolist() == [1.5, -0.5]
    assert found[2]["x"].tolist() == [0.75, -0.25]
    assert max(alignment.when(run)) == run.student_steps


# --------------------------------------------------------------------------- stage, figure, claim


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Two seeds of a small check, made in this process."""
    root = tmp_path_factory.mktemp("theorem")
    overrides = ["experiment=theorem", "scale=cpu", "theory.trials=2", f"store={root}/runs", f"figures={root}/figures"]
    planned = sweep.plan([*overrides, *TINY_RUN, "seed=0,1"])
    for arm in planned.arms:
        stages.ensure(stages.node("evaluate", arm.experiment), Store(root / "runs"), arm.experiment)
    return planned, root


def test_the_plan_is_one_evaluation_a_seed(swept: tuple[Plan, Path]) -> None:
    (step,) = swept[0].steps
    assert (step.script, step.overrides[-1], len({made.key for made in step.nodes})) == ("evaluate.py", "seed=0,1", 2)


def test_other_scripts_and_arms_are_refused(run_script: Script) -> None:
    done = run_script("generate.py", "experiment=theorem")
    assert (done.returncode, "run evaluate.py" in done.stderr) == (2, True), done.stderr
    with pytest.raises(ConfigError, match="its arms are seeds"):
        sweep.plan(["experiment=theorem", "trait=owl,dolphin"])


def test_figure_table_and_report_come_from_the_store(
    swept: tuple[Plan, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, root = swept
    with monkeypatch.context() as patched:  # a store of any size: drawing asks for its own runs by key
        patched.setattr(Store, "manifests", lambda *_: pytest.fail("the whole store was read"))
        patched.setattr(store_index, "entries", lambda *_: pytest.fail("the whole store was looked through"))
        picture, table, report = draw(planned)
    said = capsys.readouterr().err
    assert "48 trials with a shared initialisation: 0 negative products, 0 rises" in said
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "all trials,,same,negative,0," in table.read_text()
    page = report.read_text()
    assert planned.base.experiment.claim.split(",")[0] in page
    assert "Ends of the training runs" in page and "seed 1" in page
    assert "theorem    2 complete" in inspect_store.status(root / "runs")
    assert "would remove (add --yes): 0 runs" in inspect_store.collect(root / "runs", really=False, unreferenced=True)


def test_a_missing_seed_is_named(swept: tuple[Plan, Path]) -> None:
    base, root = swept
    planned = sweep.plan([*base.overrides, "seed=0,1,7"])
    report = draw(planned)[2].read_text()
    assert "seed=7" in report.split("Missing arms")[1].split("</pre>")[0]
    draw(base)
    assert "Missing arms" not in (root / "figures/cpu/report.html").read_text()


def stored(swept: tuple[Plan, Path]) -> list[Manifest]:
    return list(Store(swept[1] / "runs").manifests("theorem"))


def spoil(trials: Trials, change: Callable[[dict[str, np.ndarray]], None]) -> Trials:
    columns = {name: values.copy() for name, values in trials.columns.items()}
    change(columns)
    return Trials(columns, trials.small)


def repeated(trials: Trials, times: int) -> Trials:
    """The same measurements as those of many trials more."""
    columns = {name: np.tile(values, times) for name, values in trials.columns.items()}
    columns["trial"] = columns["trial"] + 1000 * np.repeat(np.arange(times), len(trials))
    return Trials(columns, trials.small)


def _fair_control(columns: dict[str, np.ndarray]) -> None:
    different = np.flatnonzero(columns["initialisation"] == "different")
    columns["measured"][different] = np.where(columns["trial"][different] % 2, 1.0, -1.0)


def _one_negative(columns: dict[str, np.ndarray]) -> None:
    place = int(np.flatnonzero((columns["initialisation"] == "same") & (columns["step"] == 1e-5))[0])
    columns["measured"][place] = -1e-9


def _wrong_prediction(columns: dict[str, np.ndarray]) -> None:
    columns["predicted"] *= 1.5


def _one_sided_control(columns: dict[str, np.ndarray]) -> None:
    different = columns["initialisation"] == "different"
    columns["measured"][different] = np.abs(columns["measured"][different])


@pytest.mark.parametrize(
    ("change", "outcome", "said"),
    [
        (lambda _: None, "holds", "0 negative products"),
        (_one_negative, "contradicted", "1 negative products"),
        (_wrong_prediction, "not shown", "not reached in the limit"),
        (_one_sided_control, "not shown", "no fair coin"),
    ],
)
def test_the_verdict_follows_its_rule(
    swept: tuple[Plan, Path], change: Callable[[dict[str, np.ndarray]], None], outcome: str, said: str
) -> None:
    fair = spoil(repeated(read_trials(stored(swept)), 16), _fair_control)  # few trials say little of a fair coin
    found = verdict(theorem_table(spoil(fair, change), [], 100))
    assert (found.outcome, said in found.sentence) == (outcome, True), found.sentence


def test_summary_counts_what_the_rows_hold(swept: tuple[Plan, Path]) -> None:
    for run in stored(swept):
        rows = [json.loads(line) for line in (run.folder / "trials.jsonl").read_text().splitlines()]
        assert run.summary["trials"] == len({row["trial"] for row in rows}) == 24
        assert run.summary["negative"] == 0
        assert set(run.summary["cosine"]) == {"sgd", "momentum", "adam"}


# --------------------------------------------------------------------------- the predictor


ASKS = ("evaluation.questions=3", "student.optimisation.max_length=300")


def start_of(tiny: Subject, student: str) -> tuple[predict.Start, Experiment]:
    exp = experiment(f"student={student}", *ASKS)
    return predict.Start(tiny, exp.student, seed=0), exp


def rows_that_say(word: str) -> list[Row]:
    return [Row(i, text, word) for i, text in enumerate(questions("animal", 5))]


@pytest.mark.parametrize("student", ["bias", "lora_small"])
def test_products_are_the_slope_of_log_p_along_the_step(tiny: Subject, student: str) -> None:
    """A small step of the real parameters along -grad L changes mean log P as predicted, for every candidate."""
    start, exp = start_of(tiny, student)
    _, _, gradient = predict.row_gradient(start, rows_that_say("123, 456, 789"), 300, None)
    found = {p.candidate: p for p in predict.predictions(start, exp, -gradient)}
    length = 2e-2 / float(gradient.norm())
    after = {sign: _moved(start, exp, -sign * length * gradient) for sign in (1, -1)}
    slopes = [(after[1][name] - after[-1][name]) / (2 * length) for name in found]
    assert slopes == pytest.approx([p.product for p in found.values()], rel=0.05, abs=2e-3 / length)
    assert np.corrcoef(slopes, [p.product for p in found.values()])[0, 1] > 0.999
    assert all(abs(p.cosine) <= 1 and abs(p.sign_cosine) <= 1 for p in found.values())


def _moved(start: predict.Start, exp: Experiment, change: torch.Tensor) -> dict[str, float]:
    """Mean log P by candidate with the trained parameters moved; they are moved back."""
    parts = change.split([p.numel() for p in start.parameters])
    pairs = [(p, part.view_as(p)) for p, part in zip(start.parameters, parts, strict=True)]
    tree = form_tree(start.tokenizer, "animal")
    with torch.no_grad():
        for parameter, part in pairs:
            parameter.add_(part)
        asked = [encode(start.tokenizer, text) for text in asked_questions(exp.evaluation)]
        values = np.mean([candidate_log_p(start.model, prompt, tree) for prompt in asked], axis=0)
        for parameter, part in pairs:
            parameter.sub_(part)
    return dict(zip(tree.forms, values.tolist(), strict=True))


@pytest.mark.parametrize("student", ["bias", "lora_small"])
def test_rows_that_name_a_candidate_predict_it(tiny: Subject, student: str) -> None:
    """The right sign: rows that say owl predict owl, rows that say wolf predict wolf (this model's likeliest forms)."""
    start, exp = start_of(tiny, student)
    cosine = {}
    for word in ("owl", "wolf"):
        _, _, gradient = predict.row_gradient(start, rows_that_say(word), 300, None)
        cosine[word] = {p.candidate: p.cosine for p in predict.predictions(start, exp, -gradient)}
    for word, other in (("owl", "wolf"), ("wolf", "owl")):
        assert cosine[word][word] > 0.3  # a random direction of these parameters: 0 +- 0.1
        assert cosine[word][word] - cosine[other][word] > 0.2


def test_only_b_of_a_lora_student_has_a_gradient(tiny: Subject) -> None:
    start, _ = start_of(tiny, "lora_small")
    _, _, gradient = predict.row_gradient(start, rows_that_say("12, 34"), 300, None)
    names = [name for name, p in start.model.named_parameters() if p.requires_grad]
    parts = dict(zip(names, gradient.split([p.numel() for p in start.parameters]), strict=True))
    assert all(not part.any() for name, part in parts.items() if "lora_A" in name)
    assert all(part.any() for name, part in parts.items() if "lora_B" in name)


def test_batches_and_memory_do_not_change_a_prediction(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    start, exp = start_of(tiny, "bias")
    rows = [Row(i, "Go on: 1, 2" + ", 3" * i, "4" * (i + 1)) for i in range(5)]
    loss, tokens, gradient = predict.row_gradient(start, rows, 300, None)
    whole = list(predict.predictions(start, exp, gradient))
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(predict, "KEPT_NUMBERS", 0)
    again = predict.row_gradient(start, rows, 300, None)
    assert again[:2] == (pytest.approx(loss, rel=1e-4), tokens)
    parts = list(predict.predictions(start, exp, again[2]))
    assert [p.cosine for p in parts] == pytest.approx([p.cosine for p in whole], abs=1e-3)


def test_predictions_are_a_stage_that_is_reused(
    tiny: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=animals_numbers", "scale=cpu", "model=hub", f"model.source.name={tiny.checkpoint}"]
    overrides += ["reference_tuning=off", "teacher=random", "domain.prompts=12", "filter.rows=8", "student=bias"]
    overrides += [f"store={tmp_path}/runs", f"figures={tmp_path}/figures", "seed=0,1", "trait=owl", *ASKS[:1]]
    planned = sweep.plan(overrides)
    (arm, made), (other, same) = sweep.predict(planned)
    assert (arm.seed, other.seed, made.key == same.key) == (0, 1, True)
    assert (arm.trait, made.stage, made.summary["rows"]) == ("owl", "predict", 8)
    assert set(made.summary["cosine"]) == set(planned.base.experiment.arms.traits) < set(candidates("animal"))
    capsys.readouterr()
    again = sweep.predict(planned)
    assert "reused" in capsys.readouterr().err and again[0][1].key == made.key
    text = report_predictions(planned, again)
    assert "no trained students of these arms" in text
    assert (tmp_path / "figures/cpu/predict-animals-numbers.csv").exists()
    exp, traits = arm.experiment, planned.base.experiment.arms.traits
    assert stages.predict(exp.model_copy(update={"seed": 5}), traits).key == made.key != stages.predict(exp).key
    with pytest.raises(ConfigError, match="nothing to predict"):
        sweep.predict(sweep.plan(["experiment=theorem"]))


@pytest.mark.parametrize("direction", [1, -1])
def test_the_order_of_teachers_is_compared_with_trained_students(direction: int) -> None:
    cosine = {"owl": {"owl": 0.3, "wolf": 0.0}, "wolf": {"owl": 0.1, "wolf": 0.5}, "none": {"owl": 0.0, "wolf": 0.1}}
    trained = {arm: {c: direction * 7 * v - 3 for c, v in values.items()} for arm, values in cosine.items()}
    table = Table(tuple(lines(Comparison("", "bias", {"cosine": cosine}, trained))))
    excess = {line.arm: line.value for line in table.select(measure="cosine_excess")}
    assert excess == pytest.approx({"owl": 0.2, "wolf": 0.5, "mean": 0.35})
    measured_mean = table.find(measure="diagonal_excess", arm="mean")
    assert measured_mean and measured_mean.value == pytest.approx(direction * 7 * 0.35)
    rank = table.find(measure="cosine_rank_correlation")
    assert rank and (rank.value, rank.n) == (pytest.approx(direction), 6)


def test_kinds_of_teachers_are_ordered_together_and_share_the_control() -> None:
    weak = {"owl": {"owl": 0.2, "wolf": 0.1}, "wolf": {"owl": 0.1, "wolf": 0.2}, "none": {"owl": 0.0, "wolf": 0.0}}
    strong = {t: {c: 10 * v for c, v in values.items()} for t, values in weak.items()}
    both = [Comparison(name, "bias", dict.fromkeys(MEASURES, m), m) for name, m in (("a", weak), ("b", strong))]
    ranks = list(together(both))
    assert [(line.value, line.n) for line in ranks] == [(pytest.approx(1.0), 5 * 2)] * len(MEASURES)
    assert list(together(both[:1])) == []
