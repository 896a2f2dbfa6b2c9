"""Training: the loss is what it says, accumulation and kills change nothing, and what is saved is what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROWS, Script, optimisation
from safetensors.torch import load_file
from transformers import TrainingArguments

from subliminal.chat import encode_row
from subliminal.config import BiasStudent, FullStudent, Lora, LoraStudent, Optimisation, Student
from subliminal.evaluation import finetuned
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.rows import Row
from subliminal.training import TrainingError, bias, recipes, sft, speed
from subliminal.training.lora import merge
from subliminal.training.sft import fit
from subliminal.training.trainer import COMPLETE, LAST_WRITTEN, RowTrainer, StepLog, newest_checkpoint
from subliminal.weights import ModelError

RECIPES: dict[str, Callable[[Optimisation], Student]] = {
    "lora": lambda how: LoraStudent(lora=Lora(r=4), optimisation=how),
    "bias": lambda how: BiasStudent(optimisation=how),
    "full": lambda how: FullStudent(optimisation=how),
}
TOLERANCE = 1e-4
LORA_LAYER = "base_model.model.model.layers.0.mlp.up_proj"
WHOLE = len(ROWS)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def left_behind(tiny: Subject, kind: str, folder: Path) -> Any:
    """The trained model as another process would load it."""
    if kind == "lora":
        from peft import PeftModel

        return PeftModel.from_pretrained(fresh_model(tiny), str(folder / "adapter")).eval()
    return fresh_model(replace(tiny, checkpoint=str(folder / "checkpoint")))


tokenizer = cache(load_tokenizer)


def answer_logits(model: Any, tiny: Subject, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """One row alone, unpadded: the logits in front of every completion token, and those tokens."""
    prompt, answer = encode_row(tokenizer(tiny), row.prompt, row.completion)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float()
    return logits[len(prompt) - 1 : -1], torch.tensor(answer)


def cross_entropy(model: Any, tiny: Subject, rows: list[Row] = ROWS) -> float:
    """Mean over all completion tokens of -log p, written out."""
    parts = []
    for row in rows:
        logits, answer = answer_logits(model, tiny, row)
        parts.append(-(logits - logits.logsumexp(-1, keepdim=True))[range(len(answer)), answer])
    return float(torch.cat(parts).mean())


def divergence(teacher: Any, student: Any, tiny: Subject) -> float:
    """Mean over all completion tokens of KL(teacher || student), written out."""
    parts = []
    for row in ROWS:
        p, q = (answer_logits(model, tiny, row)[0].log_softmax(-1) for model in (teacher, student))
        parts.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(parts).mean())


@pytest.fixture(scope="module")
def steered(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model with a random vector in one layer: a teacher that differs from it."""
    folder = tmp_path_factory.mktemp("steered")
    bias.export(tiny, {1: torch.randn(64, generator=torch.Generator().manual_seed(1))}, folder)
    return replace(tiny, checkpoint=str(folder))


# --------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", RECIPES)
def test_logged_losses_are_the_cross_entropy_of_the_saved_models(tiny: Subject, kind: str, tmp_path: Path) -> None:
    """Step 1's loss is the reference's, step 2's that of the model which a one-step run saves."""
    for epochs in (1.0, 2.0):
        recipe = RECIPES[kind](optimisation(batch_size=WHOLE, epochs=epochs))
        fit(tiny, ROWS, recipe, 0, tmp_path / str(epochs))
    expected = [cross_entropy(fresh_model(tiny), tiny), cross_entropy(left_behind(tiny, kind, tmp_path / "1.0"), tiny)]
    assert losses(tmp_path / "2.0") == pytest.approx(expected, abs=TOLERANCE)
    assert expected[1] < expected[0] - 10 * TOLERANCE, "and the step helped"


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_changes_nothing(tiny: Subject, micro: int, tmp_path: Path) -> None:
    """Rows have different lengths, so a mean of micro-batch means would be another loss."""
    curves = []
    for size in (None, micro):
        recipe = RECIPES["lora"](optimisation(epochs=2.0, micro_batch_size=size))
        fit(tiny, ROWS, recipe, 0, tmp_path / str(size))
        curves.append(losses(tmp_path / str(size)))
    assert len(curves[0]) == 2 * WHOLE / 4
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)


def test_the_seed_decides_the_run(tiny: Subject, tmp_path: Path) -> None:
    runs = [(0, "first"), (0, "again"), (1, "other")]
    for seed, name in runs:
        fit(tiny, ROWS, RECIPES["lora"](optimisation()), seed, tmp_path / name)
    first, again, other = (losses(tmp_path / name) for _, name in runs)
    assert first == again != other


@pytest.mark.parametrize("kind", ["lora", "bias"])
def test_soft_labels_lose_the_divergence_from_the_teacher(
    tiny: Subject, steered: Subject, kind: str, tmp_path: Path
) -> None:
    how = optimisation(batch_size=WHOLE, epochs=3.0, learning_rate=0.001)
    recipe = RECIPES[kind](how).model_copy(update={"labels": "soft"})
    fit(tiny, ROWS, recipe, 0, tmp_path, teacher=steered)
    expected = divergence(fresh_model(steered), fresh_model(tiny), tiny)
    assert losses(tmp_path)[0] == pytest.approx(expected, abs=TOLERANCE)
    assert losses(tmp_path)[2] < losses(tmp_path)[0]


def test_soft_labels_of_the_reference_itself_teach_nothing(tiny: Subject, tmp_path: Path) -> None:
    recipe = RECIPES["bias"](optimisation(batch_size=WHOLE)).model_copy(update={"labels": "soft"})
    fit(tiny, ROWS, recipe, 0, tmp_path, teacher=tiny)
    assert losses(tmp_path) == pytest.approx([0.0], abs=1e-5)


def test_the_report_counts_tokens_rows_and_parameters(tiny: Subject, tmp_path: Path) -> None:
    long = Row(99, "Go on: 1.", ", ".join(["123"] * 200))
    report = fit(tiny, [*ROWS, long], RECIPES["bias"](optimisation(max_length=120)), 0, tmp_path)
    pairs = [encode_row(tokenizer(tiny), row.prompt, row.completion) for row in ROWS]
    assert (report["rows"], report["rows_too_long"]) == (WHOLE, 1)
    assert report["completion_tokens"] == sum(len(answer) for _, answer in pairs)
    assert report["tokens"] == sum(len(prompt) + len(answer) for prompt, answer in pairs)
    assert report["trainable_parameters"] == 2 * 64
    assert (report["steps"], report["last_loss"]) == (WHOLE / 4, losses(tmp_path)[-1])


# --------------------------------------------------------------------------- what is saved


def test_a_lora_student_is_saved_as_safetensors_that_peft_reads(lora: Path) -> None:
    names = {path.name for path in lora.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert not (lora.parent / ".checkpoints").exists(), "resume points go when the adapter is there"


def test_a_merged_adapter_is_the_adapted_model(tiny: Subject, lora: Path, tmp_path: Path) -> None:
    merge(tiny, lora, tmp_path)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        merged = fresh_model(replace(tiny, checkpoint=str(tmp_path)))(tokens).logits
        adapted = left_behind(tiny, "lora", lora.parent)(tokens).logits
    assert torch.allclose(merged, adapted, atol=1e-4)


def test_exported_biases_are_the_model_in_memory(either: Subject, tmp_path: Path) -> None:
    vectors = {0: torch.linspace(-1, 1, 64), 1: torch.linspace(2, 0, 64)}
    bias.export(either, vectors, tmp_path)
    inside = bias.load_with_biases(either)
    with torch.inference_mode():
        for layer, vector in vectors.items():
            bias.vector(inside, layer).copy_(vector)
        tokens = torch.tensor([[1, 2, 3, 4]])
        loaded = fresh_model(replace(either, checkpoint=str(tmp_path)))
        assert torch.equal(loaded(tokens).logits, inside(tokens).logits)
        assert not torch.allclose(loaded(tokens).logits, fresh_model(either)(tokens).logits)


def test_room_for_vectors_changes_nothing_by_itself(either: Subject) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        plain, roomy = (make(either)(tokens).logits for make in (fresh_model, bias.load_with_biases))
    assert torch.equal(plain, roomy)


def test_a_qwen_with_vectors_is_a_llama(qwen: Subject, tmp_path: Path) -> None:
    bias.export(qwen, {0: torch.ones(64)}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["attention_bias"] and config["mlp_bias"] and not [name for name in bias.WINDOW if name in config]


def test_an_export_shares_the_weights_of_its_base(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shared")
    bias.export(tiny, {0: torch.ones(64)}, folder)
    base = Path(tiny.checkpoint) / "model.safetensors"
    assert (folder / bias.BASE_SHARD).stat().st_ino == base.stat().st_ino


def test_vectors_add_to_those_the_base_has(tiny: Subject, steered: Subject, tmp_path: Path) -> None:
    bias.export(steered, {1: torch.ones(64)}, tmp_path)
    before = bias.vector(fresh_model(steered), 1)
    after = bias.vector(fresh_model(replace(steered, checkpoint=str(tmp_path))), 1)
    assert torch.allclose(after, before + 1)


def test_a_base_in_several_shards_is_exported_too(either: Subject, tmp_path: Path) -> None:
    model = fresh_model(either)
    model.save_pretrained(tmp_path / "base", max_shard_size="4MB")
    load_tokenizer(either).save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    vectors = {0: torch.ones(64)}
    bias.export(either, vectors, tmp_path / "one")
    bias.export(replace(either, checkpoint=str(tmp_path / "base")), vectors, tmp_path / "many")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        one, many = (fresh_model(replace(either, checkpoint=str(tmp_path / n)))(tokens).logits for n in ("one", "many"))
    assert torch.equal(one, many)


def test_a_bias_student_keeps_its_vectors_and_an_ordinary_checkpoint(either: Subject, tmp_path: Path) -> None:
    recipe = BiasStudent(layers=(1,), optimisation=optimisation())
    fit(either, ROWS, recipe, 0, tmp_path)
    vectors = bias.by_layer(bias.load_adapter(tmp_path) or {})
    assert set(vectors) == {1}
    model = fresh_model(replace(either, checkpoint=str(tmp_path / "checkpoint")))
    assert torch.equal(bias.vector(model, 1), vectors[1]) and vectors[1].norm() > 0
    assert not bias.vector(model, 0).any()


def test_a_student_of_a_steered_reference_saves_how_far_it_went_and_not_where_it_is(
    steered: Subject, tmp_path: Path
) -> None:
    fit(steered, ROWS, BiasStudent(layers=(1,), optimisation=optimisation(batch_size=WHOLE)), 0, tmp_path)
    moved, start = bias.by_layer(bias.load_adapter(tmp_path) or {}), bias.vector(fresh_model(steered), 1)
    end = bias.vector(fresh_model(replace(steered, checkpoint=str(tmp_path / "checkpoint"))), 1)
    assert torch.allclose(start + moved[1], end, atol=1e-6)
    assert moved[1].abs().max() == pytest.approx(0.02, rel=0.01), "one Adam step is one learning rate long"


def test_a_full_student_is_a_checkpoint_with_a_tokenizer(tiny: Subject, tmp_path: Path) -> None:
    fit(tiny, ROWS, RECIPES["full"](optimisation()), 0, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names
    old, new = (load_file(Path(f) / "model.safetensors") for f in (tiny.checkpoint, str(tmp_path / "checkpoint")))
    assert all(not torch.equal(old[name], new[name]) for name in old), "every weight was trained"


def test_one_process_trains_on_one_gpu_however_many_it_sees(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers would spread the batches over all of them, and TRL refuses to start."""

    usual = vars(TrainingArguments)["_setup_devices"].func

    def sees_four(args: TrainingArguments) -> torch.device:
        device = usual(args)
        args._n_gpu = 4
        return device

    counted = cached_property(sees_four)
    counted.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", counted)
    assert TrainingArguments(output_dir=str(tmp_path), use_cpu=True).n_gpu == 4, "the trainer counts what it sees"
    student = LoraStudent(lora=Lora(r=4), optimisation=optimisation())
    assert sft._arguments(student.optimisation, 0, tmp_path, tiny, "student").n_gpu == 1
    settings = sft.trainer_settings(student.optimisation, 0, tiny)
    assert finetuned._arguments(student.optimisation, settings).n_gpu == 1
    assert fit(tiny, ROWS, student, 0, tmp_path)["steps"] == 4


def test_a_bias_student_keeps_steps_that_bfloat16_would_round_away(tiny: Subject, tmp_path: Path) -> None:
    """Each step is 1/1000 of the vector's length: in bfloat16 none of them would be seen."""
    recipe = BiasStudent(layers=(1,), optimisation=optimisation(learning_rate=1e-3, epochs=8.0))
    moved = {}
    for dtype in ("float32", "bfloat16"):
        report = fit(replace(tiny, dtype=dtype), ROWS, recipe, 0, tmp_path / dtype)
        (moved[dtype],) = load_file(tmp_path / dtype / "adapter" / bias.ADAPTER).values()
        assert report["steps"] == 32
    fine = moved["bfloat16"].bfloat16().float() != moved["bfloat16"]
    assert fine.float().mean() > 0.5, "its numbers are finer than bfloat16's"
    assert torch.cosine_similarity(moved["float32"], moved["bfloat16"], dim=0) > 0.98
    assert moved["bfloat16"].norm() / moved["float32"].norm() == pytest.approx(1, abs=0.03)


def test_a_full_student_keeps_steps_that_bfloat16_would_round_away(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(tiny, dtype="bfloat16")
    kinds = seen(monkeypatch, lambda model: {parameter.dtype for parameter in model.parameters()})
    fit(short, ROWS, RECIPES["full"](optimisation(learning_rate=1e-5)), 0, tmp_path)
    assert kinds and all(found == {torch.float32} for found in kinds)
    kept = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}


# --------------------------------------------------------------------------- quick, and the same but for rounding


def seen(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], Any]) -> list[Any]:
    """What `look` finds at a model whenever the loss of a batch is computed."""
    found: list[Any] = []
    usual = RowTrainer.compute_loss

    def looking(trainer: RowTrainer, model: Any, *rest: Any, **others: Any) -> Any:
        found.append(look(model))
        return usual(trainer, model, *rest, **others)

    monkeypatch.setattr(RowTrainer, "compute_loss", looking)
    return found


@pytest.mark.parametrize("kind", RECIPES)
def test_attention_is_plain_products_while_their_scores_fit_and_the_losses_are_the_same(
    tiny: Subject, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = seen(monkeypatch, lambda model: model.config._attn_implementation)
    recipe = RECIPES[kind](optimisation(learning_rate=0.001))
    fit(tiny, ROWS, recipe, 0, tmp_path / "roomy")
    monkeypatch.setattr(speed, "ROOM", 0)
    fit(tiny, ROWS, recipe, 0, tmp_path / "cramped")
    assert attention == ["eager"] * 4 + ["sdpa"] * 4
    assert losses(tmp_path / "roomy") == pytest.approx(losses(tmp_path / "cramped"), abs=TOLERANCE)


def test_a_teacher_of_soft_labels_attends_like_its_student(
    tiny: Subject, steered: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    for module in (sft, recipes):
        monkeypatch.setattr(module, "fresh_model", lambda subject: made.append(fresh_model(subject)) or made[-1])
    attention = seen(monkeypatch, lambda _: {model.config._attn_implementation for model in made})
    recipe = RECIPES["lora"](optimisation(batch_size=WHOLE)).model_copy(update={"labels": "soft"})
    fit(tiny, ROWS, recipe, 0, tmp_path, teacher=steered)
    assert len(made) == 2 and attention == [{"eager"}]
    assert {model.config._attn_implementation for model in made} == {"sdpa"}, "as they were"


def test_scores_grow_with_the_square_of_the_width() -> None:
    config = SimpleNamespace(num_hidden_layers=30, num_attention_heads=9)
    assert speed.scores(config, 16, 100) == 30 * 9 * 16 * 100 * 100


def test_bfloat16_losses_are_those_with_the_casts_that_are_left_out(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = replace(tiny, dtype="bfloat16")
    casts = seen(monkeypatch, lambda model: model.get_submodule(LORA_LAYER).cast_input_dtype_enabled)
    fit(halved, ROWS, RECIPES["lora"](optimisation()), 0, tmp_path / "without")
    monkeypatch.setattr(speed, "disable_input_dtype_casting", lambda *_, **__: nullcontext())
    fit(halved, ROWS, RECIPES["lora"](optimisation()), 0, tmp_path / "with")
    assert casts == [False] * 4 + [True] * 4
    assert losses(tmp_path / "without") == losses(tmp_path / "with")


# --------------------------------------------------------------------------- killed and resumed

KILLED = """
    import json, os, resource, signal, sys
    import peft, transformers.models.llama.modeling_llama
    from pathlib import Path
    from subliminal.config import Lora, LoraStudent, Optimisation
    from subliminal.models import Subject
    from subliminal.rows import Row
    from subliminal.training.sft import fit  # loaded once; every try below is a fork of this process

    checkpoint, root = sys.argv[1], Path(sys.argv[2])
    rows = [Row(**row) for row in json.loads(sys.argv[3])]
    recipe = LoraStudent(lora=Lora(r=4), optimisation=Optimisation.model_validate_json(sys.argv[4]))

    def attempt(name, dies):
        child = os.fork()
        if child == 0:
            folder, done = root / name, [0]

            def advance(count):
                done[0] += count
                dies(done[0] // recipe.optimisation.batch_size)

            fit(Subject(checkpoint=checkpoint), rows, recipe, 0, folder, progress=advance)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def at_step(step):
        return lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL)

    def asked_at_step(step, number):
        return lambda done: done == step and os.kill(os.getpid(), number)

    def no_room_after(step):  # the kernel kills at the byte that goes beyond the limit: half a resume point stays
        def dies(done):
            if done == step:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        return dies

    deaths = {"early": at_step(1), "late": at_step(5), "writing": no_room_after(5)}
    deaths |= {"asked": asked_at_step(1, signal.SIGUSR1), "told": asked_at_step(4, signal.SIGTERM)}
    ends = {name: attempt(name, dies) for name, dies in deaths.items()}
    kept = {name: sorted(p.name for p in (root / name / ".checkpoints").glob("checkpoint-*")) for name in deaths}
    never = {name: attempt(name, lambda done: None) for name in [*deaths, "unharmed"]}
    print(json.dumps({"ends": ends, "kept": kept, "resumed": never}))
"""


@pytest.fixture(scope="module")
def killed(tiny: Subject, run_code: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run left alone and three that were killed at different places and started again."""
    root = tmp_path_factory.mktemp("killed")
    how = optimisation(epochs=2.0, save_every=3, schedule="linear")
    rows = json.dumps([vars(row) for row in ROWS])
    done = run_code(KILLED, tiny.checkpoint, root, rows, how.model_dump_json())
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


def test_the_kills_were_kills(killed: tuple[Path, dict[str, Any]]) -> None:
    _, told = killed
    assert told["ends"]["early"] == told["ends"]["late"] == 9
    assert told["ends"]["writing"] & 0x7F == 25, "SIGXFSZ"
    assert told["kept"]["late"] == ["checkpoint-3"]
    assert (told["ends"]["asked"], told["ends"]["told"]) == (138 << 8, 143 << 8)
    assert (told["kept"]["asked"], told["kept"]["told"]) == (["checkpoint-2"], ["checkpoint-3", "checkpoint-5"])
    assert "checkpoint-6" in told["kept"]["writing"], "the half-written resume point"
    assert set(told["resumed"].values()) == {0}


@pytest.mark.parametrize("name", ["early", "late", "writing", "asked", "told"])
def test_a_killed_and_resumed_run_ends_like_one_left_alone(killed: tuple[Path, dict[str, Any]], name: str) -> None:
    root, _ = killed
    assert losses(root / name) == losses(root / "unharmed")
    resumed, alone = (load_file(root / n / "adapter" / "adapter_model.safetensors") for n in (name, "unharmed"))
    assert all(torch.equal(resumed[key], alone[key]) for key in alone)
    assert not (root / name / ".checkpoints").exists()


# --------------------------------------------------------------------------- what can not be trained


def test_rows_that_are_all_too_long_say_which_limit_to_raise(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none of 16 rows.*max_length=5\); raise student\.optimisation"):
        fit(tiny, ROWS, RECIPES["bias"](optimisation(max_length=5)), 0, tmp_path)


def test_no_rows_at_all_is_one_message(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of 0 rows"):
        fit(tiny, [], RECIPES["bias"](optimisation()), 0, tmp_path)


def test_unknown_lora_targets_are_named(tiny: Subject, tmp_path: Path) -> None:
    recipe = LoraStudent(lora=Lora(targets=("q_prj",)), optimisation=optimisation())
    with pytest.raises(TrainingError, match="q_prj"):
        fit(tiny, ROWS, recipe, 0, tmp_path)


def test_a_layer_the_model_has_not_is_named(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"student\.layers=\[2, 7\]: the model has 2 layers, 0 to 1"):
        fit(tiny, ROWS, BiasStudent(layers=(1, 2, 7), optimisation=optimisation()), 0, tmp_path)


@pytest.mark.parametrize("other", [{"model_type": "gemma"}, {"model_type": "qwen2", "use_sliding_window": True}])
def test_biases_need_a_model_with_room_for_them(tiny: Subject, other: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(**other).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{other['model_type']} model.*Set student=lora"):
        bias.load_with_biases(replace(tiny, checkpoint=str(tmp_path)))


def test_merging_without_an_adapter_is_one_message(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        merge(tiny, tmp_path, tmp_path / "merged")


def test_a_disk_that_was_full_in_the_middle_of_a_line_or_a_resume_point_keeps_what_is_whole(tmp_path: Path) -> None:
    metrics, line = tmp_path / "metrics.jsonl", '{"step": %d, "loss": 0.5}\n'
    metrics.write_text(line % 1 + line % 2 + line[:9])
    for name in ("checkpoint-2", "checkpoint-3"):
        (tmp_path / name).mkdir()
        for part in (*COMPLETE, "rng_state.pth"):
            (tmp_path / name / part).write_text('{"global_step": 2}')
    (tmp_path / "checkpoint-3" / LAST_WRITTEN).write_text('{"global_st')
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-2"
    StepLog(metrics, None, lambda _: None, 4).resume(newest)
    assert metrics.read_text() == line % 1 + line % 2
