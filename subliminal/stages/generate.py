"""The teacher's completions of the domain's prompts, in shards."""

from __future__ import annotations

from pathlib import Path

from subliminal import domains
from subliminal.config import Experiment, identity
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute, constraint, domain, require_unchanged
from subliminal.outputs import teacher_subject
from subliminal.progress import progress
from subliminal.rows import write_jsonl
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.store import Json

STAGE = Stage("generate", version=1, place=40, script="generate", pushed_as="dataset")


def node(exp: Experiment) -> Node:
    """The teacher's completions of the domain's prompts, in shards."""
    settings = {"domain": domain(exp), "teacher": exp.active_teacher.kind}
    if exp.active_teacher.kind == "random":

        def write(_: Inputs, folder: Path) -> Json:
            rows = domains.programmatic(exp.domain)
            require_unchanged("domain", settings["domain"], domain(exp))
            return {"rows": write_jsonl(folder / "rows-00000.jsonl", rows)}

        label = "random numbers" if exp.domain.kind == "numbers" else f"programmatic {exp.domain.kind}"
        return STAGE.node(settings, {}, write, label)
    settings |= {"sampler": identity(exp.sampler), **constraint(exp), **compute(exp, exp.model)}
    inputs = {"teacher": teacher(exp), "reference": reference(exp)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.sampling import open_sampler, sample_shards, shards_together

        who = teacher_subject(exp, made["teacher"], made["reference"])
        prompts, pattern = domains.domain(exp.domain).prompts(exp.domain), domains.constraint(exp)
        require_unchanged("domain", settings["domain"], domain(exp))
        with progress(f"sampling {exp.trait.name}", len(prompts), "prompts") as advance:
            sampled = sample_shards(
                lambda: open_sampler(exp.sampler, who, pattern),
                prompts,
                exp.sampler.shard_size,
                folder,
                advance,
                shards_together(exp.sampler, who.device),
            )
        divergence = made["teacher"].summary.get("kl_in_format")
        return sampled if divergence is None else sampled | {"kl_in_format": divergence}

    return STAGE.node(settings, inputs, work, f"{exp.domain.kind} of {inputs['teacher'].label}", shares="shards")
