"""The generate stage against the plain loops it is built on: `LLM.generate` of vLLM, `generate` of transformers.

Both ways of a pair use the same engine or model and the same prompts; the stage also pins a seed for every row,
decodes, and writes its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Measurement, compare, options, report, starting_point, timed

from subliminal.chat import render
from subliminal.composition import compose
from subliminal.config import Experiment, Sampler
from subliminal.domains import domain
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Prompt, Row, read_jsonl
from subliminal.sampling import open_sampler, sample_shards
from subliminal.sampling.local import BATCH

GOAL = 0.9


def stage(config: Sampler, who: Subject, prompts: Sequence[Prompt]) -> int:
    """The generate stage's work into a fresh folder; returns tokens generated."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        sample_shards(lambda: open_sampler(config, who), prompts, config.shard_size, folder)
        return sum(row.tokens for path in folder.glob("rows-*.jsonl") for row in read_jsonl(path, Row))


def texts(who: Subject, prompts: Sequence[Prompt]) -> list[str]:
    tokenizer = load_tokenizer(who)
    return [render(tokenizer, prompt.text, who.system) for prompt in prompts]


def against_vllm(exp: Experiment, who: Subject, prompts: Sequence[Prompt], rounds: int) -> list[Measurement]:
    """The stage and a bare loop on one running engine, its cache of prompts emptied before each."""
    from vllm import SamplingParams

    from subliminal.gpu import shut_down
    from subliminal.sampling.engine import engine

    llm = engine(exp.sampler, who)
    chats, plain = texts(who, prompts), SamplingParams(temperature=1.0, max_tokens=exp.sampler.decoding.max_tokens)
    llm.generate(chats[:8], plain, use_tqdm=False)  # the first call of an engine is slower

    def bare() -> int:
        return sum(len(out.outputs[0].token_ids) for out in llm.generate(chats, plain, use_tqdm=False))

    def cold(work: Callable[[], int]) -> Callable[[], int]:
        return lambda: llm.reset_prefix_cache() and work()

    ways = {"LLM.generate (vLLM)": cold(bare), "stage, sampler=vllm": cold(lambda: stage(exp.sampler, who, prompts))}
    totals = timed(ways, rounds)
    shut_down()
    return compare("generation_vllm", "tokens", totals, "LLM.generate (vLLM)", {"stage, sampler=vllm": GOAL})


def against_transformers(exp: Experiment, who: Subject, prompts: Sequence[Prompt], rounds: int) -> list[Measurement]:
    """The stage and plain batches of the same size, in the prompts' order, of the same loaded model."""
    model, tokenizer = load_model(who), load_tokenizer(who)
    tokenizer.padding_side = "left"
    chats = texts(who, prompts)
    size = exp.sampler.batch_size or BATCH[who.device]  # type: ignore[union-attr]

    def batch(start: int) -> int:
        asked = tokenizer(chats[start : start + size], return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(
            **asked.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=exp.sampler.decoding.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = out[:, asked["input_ids"].shape[1] :].tolist()
        return sum(_length(answer, tokenizer.eos_token_id) for answer in answers)

    ways = {
        "generate (transformers)": lambda: sum(batch(start) for start in range(0, len(chats), size)),
        "stage, sampler=transformers": lambda: stage(exp.sampler, who, prompts),
    }
    return compare("generation_transformers", "tokens", timed(ways, rounds), "generate (transformers)", {})


def _length(answer: list[int], end: int) -> int:
    """Tokens up to and with the end token: what stands behind it is padding."""
    return answer.index(end) + 1 if end in answer else len(answer)


def main() -> None:
    parser = options(__doc__, vllm_prompts=192, transformers_prompts=128, rounds=2)
    parser.add_argument("--samplers", nargs="+", default=["vllm", "transformers"], help="which of the two")
    chosen = parser.parse_args()
    exp, who = starting_point(chosen.overrides)
    pairs = {
        "vllm": (against_vllm, chosen.vllm_prompts),
        "transformers": (against_transformers, chosen.transformers_prompts),
    }
    for name in chosen.samplers:
        work, count = pairs[name]
        asked = compose(["scale=cpu", *chosen.overrides, f"sampler={name}"])
        prompts = domain(exp.domain).prompts(exp.domain.model_copy(update={"prompts": count}))
        report(work(asked, who, prompts, chosen.rounds))


if __name__ == "__main__":
    main()
