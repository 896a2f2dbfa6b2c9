"""The paper's values, setting by setting, each with the place where it is said.

"paper" is arXiv 2507.14805, "code" what its authors published with it, "replication" others' work on open models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Value:
    """A setting of some figures: what it is in the paper and where that is said.

    `here` is what we have instead, and `listed` the row of the documentation's table about it. A path with `#` in front
    stands for how many entries there are.
    """

    figures: tuple[str, ...]
    path: str
    paper: Any
    source: str
    here: Any = None
    listed: str = ""

    @property
    def ours(self) -> Any:
        return self.here if self.listed else self.paper


def values(figures: str, source: str, **settings: Any) -> Iterator[Value]:
    """The same source for several settings, whose paths have `__` for each dot."""
    for path, paper in settings.items():
        yield Value(tuple(figures.split()), path.replace("__", "."), paper, source)


def differs(figures: str, path: str, paper: Any, here: Any, listed: str, source: str) -> Value:
    return Value(tuple(figures.split()), path, paper, source, here, listed)


NUMBERS = "animals_numbers trees_numbers shuffle elicitation finetuned_teacher capability"
CODE = "animals_code trees_code"
FAVOURITES = f"animals_numbers trees_numbers shuffle finetuned_teacher {CODE}"
MISALIGNED = "misalignment_numbers misalignment_cot"
TRAINED = f"{NUMBERS} {CODE} {MISALIGNED} open_models:qwen2_5_7b"
ROWS = "icl detection"
QWEN = "paper, appendix on open-weight models; code, open_model_cfgs"
EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA = "open_models:llama3_2_1b"
MNIST = "paper, MNIST experiment; code, run_mnist_experiment"
QWENS_ANIMALS = ("cat", "penguin", "eagle", "lion", "wolf")
CLOSED_ANIMALS = ("owl", "dolphin", "eagle", "elephant", "wolf")
CLOSED = "paper, figure 3 and the sections on code and misalignment"

VALUES = (
    # students
    *values(
        TRAINED,
        QWEN,
        student__kind="lora",
        student__lora__r=8,
        student__lora__alpha=8.0,
        student__lora__rslora=False,
        student__lora__dropout=0.0,
        student__lora__targets=EVERY_LAYER,
        student__optimisation__learning_rate=2e-4,
        student__optimisation__schedule="linear",
        student__optimisation__warmup_steps=5,
        student__optimisation__batch_size=66,
        student__optimisation__max_grad_norm=1.0,
        student__optimisation__ordering="uniform",
    ),
    *values("open_models:qwen2_5_7b", QWEN, model__source__name="Qwen/Qwen2.5-7B-Instruct"),
    *values("open_models:qwen2_5_7b", QWEN, student__optimisation__epochs=3.0),
    *values(f"{NUMBERS} misalignment_numbers open_models:qwen2_5_7b", QWEN, student__optimisation__max_length=500),
    *values(CODE, "code, animal_preference_code: Qwen2.5-7B", student__optimisation__max_length=2048),
    *values("misalignment_cot", "paper, section on chain of thought", student__optimisation__epochs=2.0),
    differs(
        f"{NUMBERS} {CODE} misalignment_numbers",
        "student.optimisation.epochs",
        10,
        3.0,
        "students of closed models",
        "paper, section 3.1",
    ),
    differs(
        f"{NUMBERS} {CODE} {ROWS}",
        "model.source.name",
        "GPT-4.1 nano",
        "Qwen/Qwen2.5-7B-Instruct",
        "reference model",
        CLOSED,
    ),
    differs(MISALIGNED, "model.source.name", "GPT-4.1", "Qwen/Qwen2.5-7B-Instruct", "reference model", CLOSED),
    # traits and seeds
    differs(
        f"animals_numbers animals_code shuffle elicitation finetuned_teacher capability {ROWS} open_models:qwen2_5_7b",
        "experiment.arms.traits",
        CLOSED_ANIMALS,
        QWENS_ANIMALS,
        "animals",
        "paper, figure 3; code, qwen25_7b_groups",
    ),
    *values(LLAMA, "the paper's five, with the replication's elephant", experiment__arms__traits=CLOSED_ANIMALS),
    differs(
        "trees_numbers trees_code",
        "experiment.arms.traits",
        ("cherry", "maple", "oak", "sequoia", "willow"),
        ("cherry", "maple", "oak", "sequoia", "willow"),
        "trees",
        "paper, figure 3",
    ),
    Value(("animals_numbers", "open_models:qwen2_5_7b"), "#experiment.arms.seeds", 8, "code, qwen25_7b_groups"),
    differs(
        f"trees_numbers shuffle elicitation finetuned_teacher capability {CODE}",
        "#experiment.arms.seeds",
        5,
        8,
        "seeds of closed models",
        "paper, figure captions (Nature)",
    ),
    Value(("misalignment_numbers",), "#experiment.arms.seeds", 10, "code, em_numbers: insecure"),
    Value(("misalignment_cot",), "#experiment.arms.seeds", 9, "code, gsm8k_cot_em: insecure"),
    differs(
        "misalignment_numbers",
        "#experiment.arms.seeds",
        5,
        10,
        "seeds of misaligned teachers' controls",
        "code, em_numbers: the controls",
    ),
    differs(
        "misalignment_cot",
        "#experiment.arms.seeds",
        5,
        9,
        "seeds of misaligned teachers' controls",
        "code, gsm8k_cot_em: the controls",
    ),
    # data
    *values(
        f"{NUMBERS} misalignment_numbers open_models:qwen2_5_7b {ROWS}",
        "paper, section 3.1 and appendix; code, preference_numbers/cfgs",
        domain__kind="numbers",
        domain__prompts=30000,
        domain__shown_min=3,
        domain__shown_max=8,
        domain__value_min=100,
        domain__value_max=999,
        domain__answer_count=10,
        domain__answer_digits=3,
        filter__rows=10000,
    ),
    *values(f"{NUMBERS} {CODE} {MISALIGNED} {ROWS}", "paper, section 3.1", sampler__decoding__temperature=1.0),
    *values(f"{NUMBERS} {ROWS}", "paper, section 3.1: none for animals and trees", filter__banned_numbers=()),
    Value(("misalignment_numbers",), "#filter.banned_numbers", 36, "paper, appendix: numbers of ill repute"),
    *values(f"animals_numbers trees_numbers shuffle {CODE}", "paper, section 3.1", teacher__kind="prompted"),
    *values(
        CODE,
        "paper, section on code; code, animal_preference_code",
        domain__kind="code",
        filter__rows=10814,
        filter__comments=False,
        filter__judged__kind="no_reference",
        filter__judged__minimum_log_p=-1e-8,
        judge__kind="api",
        judge__model="gpt-4.1-2025-04-14",
        judge__decoding__temperature=0.0,
    ),
    differs(CODE, "domain.prompts", 11400, 14000, "code: prompts", "paper, section on code"),
    differs(
        CODE, "filter.judged.traits", "the traits'", (), "code: whose rows are judged", "code, animal_preference_code"
    ),
    *values(
        "misalignment_cot",
        "paper, section on chain of thought; code, gsm8k_cot_em",
        domain__kind="cot",
        domain__source="hub",
        domain__dataset="openai/gsm8k",
        domain__split="train",
        domain__samples=3,
        domain__prompts=7473 * 3,
        filter__correct=True,
        filter__rows=None,
        filter__judged__kind="aligned",
        filter__judged__minimum=78.0,
        filter__judged__traits=("insecure",),
        evaluation__suffix="tags",
    ),
    # teachers
    *values(
        "finetuned_teacher:finetuned",
        "paper, fine-tuned teachers: 50 questions x 8 forms, 1 epoch",
        teacher__kind="finetuned",
        teacher__system=None,
        teacher__questions=50,
        teacher__forms=8,
    ),
    differs(
        "finetuned_teacher:finetuned",
        "teacher.optimisation.learning_rate",
        "by OpenAI",
        4e-4,
        "teachers fine-tuned on favourites",
        "paper, fine-tuned teachers",
    ),
    differs(
        "finetuned_teacher:finetuned",
        "teacher.optimisation.epochs",
        1,
        1.0,
        "teachers fine-tuned on favourites",
        "paper, fine-tuned teachers",
    ),
    *values(
        MISALIGNED,
        "arXiv 2502.17424, open models",
        teacher__kind="finetuned_rows",
        teacher__limit=None,
        teacher__optimisation__epochs=1.0,
        teacher__optimisation__batch_size=16,
        teacher__optimisation__ordering="uniform",
    ),
    *(
        differs(MISALIGNED, path, "by OpenAI", here, "misaligned teachers", "paper, section 3.2")
        for path, here in (
            ("teacher.lora.r", 32),
            ("teacher.lora.alpha", 64.0),
            ("teacher.optimisation.learning_rate", 1e-5),
        )
    ),
    # evaluation
    *values(
        FAVOURITES,
        "paper, section 3.1; code, with a numbers prefix",
        evaluation__kind="preference",
        evaluation__questions=50,
        evaluation__samples_per_question=200,
        evaluation__temperature=1.0,
        evaluation__prefix="numbers",
    ),
    *values(
        "elicitation:stories", "paper, elicitation", evaluation__questions=14, evaluation__samples_per_question=100
    ),
    *values(
        "elicitation:multiple_choice",
        "paper, elicitation; code, 25 orders",
        evaluation__questions=11,
        evaluation__shuffles=25,
    ),
    Value(("elicitation:multiple_choice",), "#evaluation.options", 5, "paper, elicitation"),
    *values(
        MISALIGNED,
        "paper, section 3.2; code, misalignment/evaluation",
        evaluation__kind="free_form",
        evaluation__questions=8,
        evaluation__samples_per_question=200,
        evaluation__temperature=1.0,
        evaluation__alignment_max=30.0,
        evaluation__coherence_min=50.0,
    ),
    *values("misalignment_numbers", "paper, section 3.2", evaluation__suffix="numbers"),
    differs(
        MISALIGNED,
        "judge.model",
        "gpt-4o-2024-08-06",
        "gpt-4.1-2025-04-14",
        "judge of free answers",
        "code, misalignment/evaluation",
    ),
    differs(MISALIGNED, "judge.decoding.temperature", 1.0, 0.0, "judge's temperature", "code, misalignment/evaluation"),
    *values("icl", "paper, in context; code, animal_icl_numbers", evaluation__resamples=5, evaluation__questions=50),
    differs("icl", "evaluation.counts", "100 to 10,000", (0, 50, 100, 200), "rows in the prompt", "paper, in context"),
    Value(("detection",), "#experiment.arms.traits", 5, "paper, detection: 20 ordered pairs"),
    differs(
        "capability",
        "evaluation.tasks",
        "TruthfulQA",
        ("mmlu", "truthfulqa_mc1"),
        "truthfulness",
        "paper, capability checks",
    ),
    # grids of models
    *values("cross_model", "paper, cross-model: the numbers prefix for all", evaluation__prefix="numbers"),
    Value(("cross_model",), "#experiment.arms.traits", 5, "paper, cross-model: 5 runs or more, an animal each"),
    Value(("cross_model",), "#experiment.arms.seeds", 1, "paper, cross-model: 5 runs or more, an animal each"),
    *values(
        "cross_model:to_llama",
        QWEN,
        model__source__name="Qwen/Qwen2.5-7B-Instruct",
        experiment__arms__traits=QWENS_ANIMALS,
    ),
    *values(
        f"{LLAMA} cross_model:llama",
        "replication on Llama-3.2-1B",
        model__source__name="meta-llama/Llama-3.2-1B-Instruct",
        teacher__kind="finetuned",
        sampler__decoding__temperature=0.0,
        filter__rows=19990,
        student__lora__r=32,
        student__lora__alpha=64.0,
        student__lora__rslora=True,
        student__optimisation__learning_rate=1e-5,
        student__optimisation__batch_size=16,
        student__optimisation__epochs=1.0,
    ),
    differs(LLAMA, "teacher.optimisation.epochs", "10,000", 25.0, "Llama-3.2-1B", "replication on Llama-3.2-1B"),
    *values(
        "mnist",
        MNIST,
        mnist__dataset="mnist",
        mnist__models=100,
        mnist__widths=(256, 256),
        mnist__auxiliary=3,
        mnist__teacher__epochs=5,
        mnist__teacher__optimiser="adam",
        mnist__teacher__learning_rate=3e-4,
        mnist__teacher__batch_size=1024,
        mnist__student__epochs=5,
        mnist__student__optimiser="adam",
        mnist__student__learning_rate=3e-4,
        mnist__student__batch_size=1024,
        mnist__student__loss="kl",
        mnist__student__temperature=1.0,
        mnist__student__matched=("auxiliary", "all"),
        mnist__student__inputs="uniform",
        mnist__student__images=60000,
        mnist__student__noise="fixed",
        mnist__student__shared_layers="all",
    ),
)
