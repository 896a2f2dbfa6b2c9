"""The exact preference evaluation: many LoRA students in one process, and all candidates in one pass a question.

Compared with one process a student (start-up and the base model paid every time), and with one forward pass for every
surface form of every candidate.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from side_by_side import Measurement, compare, options, report, starting_point, timed

from subliminal.config import Lora
from subliminal.launch import script_environment
from subliminal.models import Subject, fresh_model

TOLERANCE = 1e-3
"""Nats, in float32; bfloat16 rounds differently in passes of different shape, by a tenth of a nat at times."""


def make_adapters(who: Subject, count: int, folder: Path) -> list[Path]:
    """`count` LoRA adapters with random weights: their evaluation costs what a trained student's does."""
    import torch

    from subliminal.training.lora import with_lora

    places = [folder / f"student-{number}" for number in range(count)]
    for number, place in enumerate(places):
        torch.manual_seed(number)
        model = with_lora(fresh_model(who), Lora(), "student")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
        model.save_pretrained(str(place))
    return places


def ask(who: Subject, adapters: list[Path], questions: int) -> list[np.ndarray]:
    """Log P of every candidate for every question, one array an adapter."""
    from subliminal.evaluation.preference import log_p_of
    from subliminal.evaluation.questions import questions as texts

    asked = texts("animal", questions)
    return [log_p_of(replace(who, adapter=place), asked, "animal", lambda _: None) for place in adapters]


def in_processes(arguments: list[str], groups: list[list[Path]]) -> None:
    """One new Python process a group of adapters."""
    for group in groups:
        command = [sys.executable, __file__, *arguments, "--adapters", *map(str, group)]
        subprocess.run(command, check=True, env=script_environment())


def students(who: Subject, count: int, arguments: list[str], rounds: int) -> list[Measurement]:
    """All students in one process against a process each; start-up is part of both."""
    with TemporaryDirectory() as place:
        adapters = make_adapters(who, count, Path(place))

        def way(groups: list[list[Path]]) -> Callable[[], float]:
            return lambda: in_processes(arguments, groups) or count

        ways = {"one process a student": way([[path] for path in adapters]), "one process": way([adapters])}
        return compare("evaluation_students", "students", timed(ways, rounds), "one process a student", {})


def form_by_form(who: Subject, questions: int) -> np.ndarray:
    """Log P of every candidate as one would write it first: a forward pass for each form; none begins another's."""
    import torch

    from subliminal.chat import encode
    from subliminal.evaluation.exact import form_tree
    from subliminal.evaluation.questions import questions as texts
    from subliminal.models import load_model, load_tokenizer

    model, tokenizer = load_model(who), load_tokenizer(who)
    tree = form_tree(tokenizer, "animal")
    assert tree.ends is not None
    ends = tree.ends.to(model.device)

    def log_p(prompt: list[int], form: tuple[int, ...]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *form]], device=model.device)).logits[0].float()
        steps = logits[len(prompt) - 1 :].log_softmax(-1)
        return (sum(steps[i, token] for i, token in enumerate(form)) + steps[-1][ends].logsumexp(-1)).cpu()

    def row(text: str) -> list[float]:
        prompt = encode(tokenizer, text, who.system)
        return [float(torch.logsumexp(torch.stack([log_p(prompt, f) for f in own]), 0)) for own in tree.forms.values()]

    with torch.inference_mode():
        return np.array([row(text) for text in texts("animal", questions)])


def at_once(who: Subject, questions: int) -> np.ndarray:
    """The same as the evaluate stage gets it."""
    from subliminal.evaluation.preference import log_p_of
    from subliminal.evaluation.questions import questions as texts

    return log_p_of(who, texts("animal", questions), "animal", lambda _: None)


def check_numbers(who: Subject) -> None:
    """Print how far both ways are apart on one question: in float32, where they must agree, and as the model runs."""
    for subject in (replace(who, dtype="float32"), who):
        apart = float(np.abs(form_by_form(subject, 1) - at_once(subject, 1)).max())
        met = f", allowed {TOLERANCE:g}: {'met' if apart < TOLERANCE else 'NOT met'}" if subject is not who else ""
        print(f"largest difference in {subject.dtype} {apart:.1e} nats{met}")


def candidates_at_once(who: Subject, questions: int, rounds: int) -> list[Measurement]:
    """Our one pass a question against one pass a form."""
    check_numbers(who)  # also loads the model, which is no part of either
    ways = {
        "one pass a form": lambda: form_by_form(who, questions).shape[0],
        "evaluate stage, exact": lambda: at_once(who, questions).shape[0],
    }
    return compare("evaluation_candidates", "questions", timed(ways, rounds), "one pass a form", {})


def main() -> None:
    parser = options(__doc__, students=4, questions=24, exact_questions=3, rounds=1)
    parser.add_argument("--adapters", nargs="+", type=Path, help="evaluate these and end (what the parts call)")
    chosen = parser.parse_intermixed_args()
    _, who = starting_point(chosen.overrides)
    if chosen.adapters:
        ask(who, chosen.adapters, chosen.questions)
        return
    report(candidates_at_once(who, chosen.exact_questions, chosen.rounds))
    report(students(who, chosen.students, [*chosen.overrides, "--questions", str(chosen.questions)], chosen.rounds))


if __name__ == "__main__":
    main()
