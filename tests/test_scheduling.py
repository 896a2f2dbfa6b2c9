"""What a sweep consists of and will cost, before anything is submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import experiment

from subliminal import inspect_store, stages, sweep, transmission
from subliminal.composition import compose, hydra_message
from subliminal.plan import Plan
from subliminal.scheduling import estimates, slurm
from subliminal.scheduling.jobs import Job, PlannedElsewhereError, jobs, locate
from subliminal.scheduling.slurm import _dependency, _parameters, _place
from subliminal.store import Manifest, Recipe, Store, write_atomically

FIGURE = ["experiment=animals_numbers", "scale=cpu", "device=cpu", "trait=owl,dolphin,none", "student=lora", "seed=0,1"]


@pytest.fixture(scope="module")
def planned() -> Plan:
    return sweep.plan(FIGURE)


def test_every_stage_run_is_there_once_and_after_what_it_reads(planned: Plan) -> None:
    every = jobs(planned)
    counts = {stage: sum(job.node.stage == stage for job in every) for stage in {job.node.stage for job in every}}
    assert counts == {"model": 1, "reference": 1, "teacher": 3, "generate": 3, "filter": 3, "train": 6, "evaluate": 7}
    for place, job in enumerate(every):
        assert set(job.reads) <= {other.ident for other in every[:place]}


@pytest.mark.parametrize("overrides", [["experiment=theorem", "seed=0,1"], ["experiment=mnist_auxiliary"]])
def test_sweeps_without_language_models_are_jobs_too(overrides: list[str]) -> None:
    planned = sweep.plan(overrides)
    assert [job.ident for job in jobs(planned)] == [(n.stage, n.key) for s in planned.steps for n in s.nodes]


def test_a_job_finds_its_stage_run_again(planned: Plan) -> None:
    for job in jobs(planned):
        assert locate(job.script, job.experiment, job.ident).recipe == job.node.recipe


def test_a_machine_that_would_compute_something_else_says_which_setting_to_name(planned: Plan) -> None:
    job = jobs(planned)[-1]
    elsewhere = job.experiment.model_copy(
        update={"model": job.experiment.model.model_copy(update={"dtype": "float16"})}
    )
    with pytest.raises(PlannedElsewhereError, match="device=cuda"):
        locate(job.script, elsewhere, job.ident)


# --------------------------------------------------------------------------- estimates


def totals(planned: Plan, store: Store) -> str:
    return estimates.described(estimates.estimate(planned, store)).splitlines()[-1]


def put(store: Store, recipe: Recipe, tokens: int | None = None) -> Manifest:
    made, _ = store.run(recipe, lambda _: {"tokens": tokens} if tokens else {})
    return made


def test_without_sizes_and_runs_like_them_the_cost_is_unknown(tmp_path: Path) -> None:
    planned = sweep.plan([*FIGURE, "model=hub", "model.source.name=some/model"])
    lines = estimates.estimate(planned, Store(tmp_path))
    assert {line.stage for line in lines if line.known} == {"filter"}, "its rules read no model"
    assert "cost unknown for 21: no complete run is like them" in estimates.described(lines)
    assert any("hf download some/model config.json" in note for note in estimates.notes(planned, lines))


def test_the_cost_comes_from_runs_with_the_same_settings_and_the_same_weights(tmp_path: Path) -> None:
    planned, store = sweep.plan(FIGURE), Store(tmp_path)
    for job in jobs(planned):
        if job.experiment.seed == 0 or job.node.stage != "train":
            put(store, job.node.recipe, 1234 if job.node.stage == "train" else None)
    lines = {line.stage: line for line in estimates.estimate(planned, store)}
    assert (lines["train"].done, lines["train"].left, lines["train"].known) == (3, 3, 3)
    assert lines["train"].cost and lines["train"].cost.tokens == 1234 and not lines["train"].estimated
    other = sweep.plan([*FIGURE, "student.optimisation.learning_rate=0.5"])
    assert {line.stage: line for line in estimates.estimate(other, store)}["train"].estimated == 6, "another recipe"
    other = sweep.plan([*FIGURE, "model=hub", "model.source.name=some/model"])
    assert {line.stage: line for line in estimates.estimate(other, store)}["train"].known == 0, "another model"


def test_totals_are_those_of_what_is_known(tmp_path: Path) -> None:
    cost = estimates.Cost(3600.0, None, 1_000_000_000)
    line = estimates.Line("train", 0, 100, 1, True, cost, None, cost.seconds, cost.size)
    said = estimates.described([line]).splitlines()[-1]
    assert "1 GPU-hours" in said and "1 GB" in said and "cost unknown for 99" in said


def test_what_is_sampled_has_a_bound(planned: Plan, tmp_path: Path) -> None:
    exp = planned.arms[0].experiment
    line = next(line for line in estimates.estimate(planned, Store(tmp_path)) if line.stage == "generate")
    assert line.most_tokens == exp.domain.prompts * exp.sampler.decoding.max_tokens


# --------------------------------------------------------------------------- what SLURM is asked for

SETTINGS = {
    "_target_": "x",
    "submitit_folder": "y",
    "gpus_per_node": 1,
    "timeout_min": 7,
    "partition": "main",
    "qos": None,
    "additional_parameters": {"requeue": True},
}


def job_of(stage: str, planned: Plan) -> Job:
    return next(job for job in jobs(planned) if job.node.stage == stage)


def test_only_stages_that_need_one_ask_for_a_gpu(planned: Plan) -> None:
    asked = {stage: _parameters(SETTINGS, job_of(stage, planned), None) for stage in ("train", "filter")}
    assert asked["train"]["gpus_per_node"] == 1 and "gpus_per_node" not in asked["filter"]
    assert asked["train"]["slurm_partition"] == "main" and asked["train"]["timeout_min"] == 7
    assert asked["train"]["slurm_additional_parameters"] == {"requeue": True, "kill-on-invalid-dep": "yes"}
    assert "slurm_qos" not in asked["train"] and "slurm_dependency" not in asked["train"]


@pytest.mark.parametrize(("judge", "gpus"), [(["judge=local"], 1), (["judge=api"], None), ([], None)])
def test_a_filter_that_asks_a_local_judge_asks_for_a_gpu(judge: list[str], gpus: int | None, tmp_path: Path) -> None:
    judged = ["+filter/judged=no_reference", *judge] if judge else []
    planned = sweep.plan([*FIGURE, "device=cuda", *judged])
    assert _parameters(SETTINGS, job_of("filter", planned), None).get("gpus_per_node") == gpus
    (line,) = [line for line in estimates.estimate(planned, Store(tmp_path)) if line.stage == "filter"]
    assert line.on_gpu == bool(gpus)


def test_only_stages_that_share_their_work_out_ask_for_several_tasks(planned: Plan) -> None:
    many = {**SETTINGS, "nodes": 2, "tasks_per_node": 4, "gpus_per_node": 8}
    asked = {stage: _parameters(many, job_of(stage, planned), None) for stage in ("teacher", "generate", "train")}
    names = ("nodes", "tasks_per_node", "gpus_per_node")
    assert [[each[name] for name in names] for each in asked.values()] == [[1, 1, 2], [2, 4, 8], [2, 4, 8]]


def test_a_job_waits_for_the_success_of_what_it_reads_and_for_a_free_place(planned: Plan) -> None:
    assert _dependency(["3", "4"], ["9"]) == "afterok:3:4,afterany:9"
    assert _dependency([], []) is None
    students = [job for job in jobs(planned) if job.node.stage == "train"]
    sent = {job.ident: (job, str(number)) for number, job in enumerate(students[:4])}
    assert _place(sent, students[4], 3) == ["1"], "three at a time: the fifth takes the place of the second"
    assert _place(sent, students[4], 5) == []


# --------------------------------------------------------------------------- what status says


def test_status_names_the_upstream_run_that_failed_through_any_number_of_stages(tmp_path: Path) -> None:
    exp = experiment("device=cpu")
    store, last = Store(tmp_path), stages.evaluate(exp)
    chain = [last, last.inputs["student"], last.inputs["student"].inputs["filter"]]
    for node in chain:
        folder = store.folder(node.stage, node.key)
        folder.mkdir(parents=True)
        reads = [[upper.stage, upper.key] for upper in node.inputs.values()]
        write_atomically(folder / "submitted.json", f'{{"job": "7", "reads": {reads!r}}}'.replace("'", '"'))
    assert inspect_store.state(store.folder(last.stage, last.key)) == "submitted (job 7)"
    write_atomically(
        store.folder("filter", chain[2].key) / "failure.json", '{"error": "RowError", "message": "too few\\nrows"}'
    )
    assert inspect_store.state(store.folder(last.stage, last.key)) == (
        f"not run: filter {chain[2].key} failed: RowError: too few"
    )


@pytest.mark.parametrize(
    ("said", "extra"),
    [
        ("In 'hydra/launcher/slurm': Could not load 'hydra/launcher/submitit_slurm'.", "cluster"),
        ("In 'hydra/launcher/local_pool': Could not load 'hydra/launcher/joblib'.", "cluster"),
        ("Unknown plugin class : 'hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher'", "ray"),
    ],
)
def test_a_launcher_that_is_not_installed_says_which_extra_has_it(said: str, extra: str) -> None:
    assert f"make install EXTRAS=cpu,dev,{extra}" in hydra_message(RuntimeError(said))


def test_a_sweep_says_beforehand_what_its_traits_can_show() -> None:
    """By simulated tables with the spreads that the domain had: six traits decide, four do not."""
    for figure in ("animals_numbers", "animals_code"):
        said = estimates.foresight(sweep.plan([f"experiment={figure}", "scale=cpu"]))
        spread = compose([f"experiment={figure}", "scale=cpu"]).experiment.spread
        assert said is not None and said.startswith("power: 6 traits, 1 seed each") and spread is not None
        least = transmission.visible(6, 1, spread.cell, spread.seed)
        assert f"one of {least:.2f} nats with probability 0.80" in said
    few = estimates.foresight(sweep.plan(["experiment=animals_numbers", "scale=cpu", "trait=owl,wolf,none"]))
    assert few is not None and "2 traits, 1 seed each: undecided whatever is seen, the rule needs 5 traits" in few
    assert estimates.foresight(sweep.plan(["experiment=mnist", "scale=cpu"])) is None


def test_a_controller_that_is_away_for_a_while_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\nif [ -e {tmp_path}/asked ]; then echo 7; else touch {tmp_path}/asked; exit 1; fi\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "AWAY_SECONDS", (0.0,))
    assert slurm._asked_again() == {"7"}
    squeue.write_text("#!/bin/sh\necho 'slurmctld is gone' >&2\nexit 1\n")
    with pytest.raises(slurm.SlurmError, match="slurmctld is gone"):
        slurm._asked_again()
