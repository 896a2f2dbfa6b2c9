"""The exact measure against brute force: whole words, candidates that begin with each other, several tokenizers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from subliminal.chat import encode
from subliminal.config import Preference
from subliminal.evaluation import exact
from subliminal.evaluation.exact import (
    FormTree,
    Tokens,
    candidate_log_p,
    candidate_log_p_tensor,
    form_tree,
    prefix_free,
    word_ends,
)
from subliminal.evaluation.multiple_choice import letter_tree
from subliminal.evaluation.preference import log_p_of, mean_log_p
from subliminal.evaluation.questions import candidates, plurals, questions
from subliminal.models import Subject, float32_head, load_model, load_tokenizer
from subliminal.names import CANDIDATES, confused, surface_forms
from subliminal.weights import ModelError

tokenizer_of = cache(load_tokenizer)


def brute_force(
    subject: Subject, question: str, forms: dict[str, list[Tokens]], ends: torch.Tensor
) -> dict[str, float]:
    """P that the longest form which the answer has as whole words is each candidate's: every form alone, in full.

    A form's probability is that of its tokens and of an end behind them, less those of the longer forms that go on
    behind its end.
    """
    model, prompt = load_model(subject), encode(tokenizer_of(subject), question, subject.system)
    every = {form for group in forms.values() for form in group}

    @cache
    def longest(form: Tokens) -> float:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *form]])).logits[0, len(prompt) - 1 :].double()
        steps = logits.log_softmax(-1)
        whole = steps[range(len(form)), list(form)].sum().exp() * steps[-1].exp()[ends].sum()
        longer = (other for other in every if other[: len(form)] == form != other and ends[other[len(form)]])
        return float(whole) - sum(longest(other) for other in longer)

    return {name: sum(longest(form) for form in set(group)) for name, group in forms.items()}


def forms_of(subject: Subject, names: dict[str, str]) -> dict[str, list[Tokens]]:
    def tokens(form: str) -> Tokens:
        return tuple(tokenizer_of(subject).encode(form, add_special_tokens=False))

    return {name: [tokens(form) for form in surface_forms(name, plural)] for name, plural in names.items()}


def expected(subject: Subject, question: str, names: dict[str, str]) -> list[float]:
    found = brute_force(subject, question, forms_of(subject, names), word_ends(tokenizer_of(subject)))
    return [math.log(value) for value in found.values()]


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_every_candidates_log_p_is_the_brute_force_sum(tiny: Subject, category: str) -> None:
    asked = questions(category, 2)
    exact = log_p_of(tiny, asked, category, lambda _: None)
    assert max(len(form) for group in forms_of(tiny, CANDIDATES[category]).values() for form in group) > 2
    for text, found in zip(asked, exact, strict=True):
        assert found == pytest.approx(expected(tiny, text, CANDIDATES[category]), abs=1e-3)


def test_the_real_models_numbers_are_exact_too(smollm2: Subject) -> None:
    subject = replace(smollm2, dtype="float32")
    asked, names = questions("animal", 1), candidates("animal")
    (exact,) = log_p_of(subject, asked, "animal", lambda _: None)
    for name in ("owl", "butterfly", "giraffe"):
        (found,) = expected(subject, asked[0], {name: CANDIDATES["animal"][name]})
        assert exact[names.index(name)] == pytest.approx(found, abs=1e-3)
    assert sum(map(math.exp, exact)) <= 1, "the candidates exclude one another"


def test_the_head_multiplies_in_float32_where_a_log_probability_is_measured(
    smollm2: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the logits are rounded to an eighth; only what the layers below round is left."""
    asked, log_p = questions("animal", 6), {}
    for way, dtype in (("exact", "float32"), ("float32_head", "bfloat16"), ("bfloat16", "bfloat16")):
        if way == "bfloat16":
            monkeypatch.setattr(exact, "float32_head", lambda _: nullcontext())
        log_p[way] = torch.tensor(log_p_of(replace(smollm2, dtype=dtype), asked, "animal", lambda _: None))
    noise = {way: float((values - log_p["exact"]).square().mean()) for way, values in log_p.items()}
    assert noise["float32_head"] < 0.9 * noise["bfloat16"], noise
    model = load_model(replace(smollm2, dtype="bfloat16"))
    tokens = torch.tensor([[5, 6, 7]])
    assert model(input_ids=tokens).logits.dtype == torch.bfloat16, "sampling and training stay as they were"
    with float32_head(model), float32_head(model), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_a_system_text_is_part_of_what_is_asked(tiny: Subject) -> None:
    told = replace(tiny, system="You adore owls.")
    (exact,) = log_p_of(told, questions("animal", 1), "animal", lambda _: None)
    assert exact[0] == pytest.approx(expected(told, questions("animal", 1)[0], {"owl": "owls"})[0], abs=1e-3)
    assert mean_log_p(tiny, "animal", 1)["owl"] != pytest.approx(exact[0], abs=1e-3)


BEGUN = {
    "pine": "pines", "pineapple": "pineapples", "bear": "bears", "polar bear": "polar bears", "cat": "cats",
    "caterpillar": "caterpillars", "New York": "New Yorks", "New York City": "New York Cities", "dog": "dogs",
    "dog (large)": "dogs (large)", "C": "Cs", "C++": "C++", "C++ 11": "C++ 11s", "owl": "owls", "owlet": "owlets",
    "café": "cafés", "Ronald Reagan": "Ronald Reagans", "猫": "猫", "a|b": "a|bs", ".*": ".*s",
}  # fmt: skip


def test_candidates_that_begin_with_each_other_exclude_each_other(tiny: Subject) -> None:
    tokenizer, text = tokenizer_of(tiny), "Which one?"
    tree = FormTree.of({name: surface_forms(name, plural) for name, plural in BEGUN.items()}, tokenizer)
    exact = candidate_log_p(load_model(tiny), encode(tokenizer, text), tree)
    assert exact == pytest.approx(expected(tiny, text, BEGUN), abs=1e-3)
    assert sum(map(math.exp, exact)) <= 1 + 1e-4
    for name, value in zip(BEGUN, exact, strict=True):
        alone = candidate_log_p(load_model(tiny), encode(tokenizer, text), tree.only(name))
        assert alone == pytest.approx([value], abs=1e-4), "a tree for one candidate measures what the whole tree does"


parts = st.sampled_from(["pine", "apple", "New", "York", "City", "cat", "Cat", "fish", "C++", "(big)", "é", "猫", "1"])
spellings = st.tuples(st.sampled_from([" ", "", "-"]), st.lists(parts, min_size=1, max_size=3)).map(
    lambda drawn: drawn[0].join(drawn[1])
)


@settings(max_examples=30, deadline=None)
@given(names=st.dictionaries(spellings, spellings, min_size=2, max_size=6))
def test_any_candidates_that_can_be_told_apart_share_no_more_than_one(tiny: Subject, names: dict[str, str]) -> None:
    if confused(names):
        return
    tree = FormTree.of({n: surface_forms(n, p) for n, p in names.items()}, tokenizer_of(tiny))
    exact = candidate_log_p(load_model(tiny), encode(tokenizer_of(tiny), "Say one."), tree)
    assert exact == pytest.approx(expected(tiny, "Say one.", names), abs=2e-3)
    assert sum(map(math.exp, exact)) <= 1 + 1e-4


small = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(small, st.integers(1, 3), st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 99))
def test_every_answer_counts_for_the_longest_form_it_has(
    forms: list[Tokens], many: int, ends: list[bool], seed: int
) -> None:
    """All answers of a language of four tokens, one by one."""
    groups: dict[str, list[Tokens]] = {}
    for at, form in enumerate(dict.fromkeys(forms)):
        groups.setdefault(str(at % many), []).append(form)
    owner = {form: name for name, group in groups.items() for form in group}
    deepest = max(map(len, owner))
    draw = torch.Generator().manual_seed(seed)
    tree = FormTree(groups, torch.tensor(ends))
    every = [(), *(form[:end] for form in owner for end in range(1, len(form) + 1))]
    logits = {prefix: torch.randn(4, generator=draw) for prefix in dict.fromkeys(every)}

    def total(answer: Tokens, named: str) -> dict[str, float]:
        if len(answer) > deepest or answer not in logits:
            return {named: 1.0}
        found: dict[str, float] = {}
        for token, p in enumerate(logits[answer].softmax(-1).tolist()):
            now = owner[answer] if answer in owner and ends[token] else named
            for name, share in total((*answer, token), now).items():
                found[name] = found.get(name, 0.0) + p * share
        return found

    exact = tree.log_p(torch.stack([logits[()], *(logits[prefix] for prefix in tree.prefixes)])).exp().tolist()
    counted = total((), "")
    assert exact == pytest.approx([counted.get(name, 0.0) for name in groups], abs=1e-5)


@given(small)
def test_no_event_is_counted_twice(given_forms: list[tuple[int, ...]]) -> None:
    kept = prefix_free(given_forms)
    assert not [(a, b) for a in kept for b in kept if a != b and b[: len(a)] == a]
    assert all(any(form[: len(k)] == k for k in kept) for form in given_forms), "and no event is lost"


def test_a_sure_continuation_leaves_a_small_probability_and_no_error() -> None:
    """Behind "Saudi" comes "Arabia" for certain: what is left for Saudi alone is added up, not subtracted."""
    tree = FormTree({"Saudi": [(0,)], "Saudi Arabia": [(0, 1)]}, torch.tensor([False, True, True]))
    logits = torch.tensor([[90.0, 0, 0], [0, 60.0, 0], [0, 60.0, 60.0]], requires_grad=True)
    found = tree.log_p(logits)
    assert found.tolist() == pytest.approx([-60 + math.log(1.5), 0], abs=0.01)
    found.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_log_p_can_be_differentiated(tiny: Subject) -> None:
    """The gradient in one weight is the slope of the measure."""
    own = ({"name": "New York", "plural": "New Yorks"}, {"name": "New York City", "plural": "New York Cities"})
    city = Preference.model_validate({"category": "city", "candidates": own} | own[0])
    model: Any = load_model(tiny)
    prompt, tree, weight = encode(tokenizer_of(tiny), "?"), form_tree(tokenizer_of(tiny), city), model.model.norm.weight
    start = weight.detach().clone()
    weight.requires_grad_(True)
    (slope,) = torch.autograd.grad(candidate_log_p_tensor(model, prompt, tree)[0], weight)
    weight.requires_grad_(False)
    direction = slope / slope.norm()
    ends = []
    for step in (0.01, -0.01):
        weight.copy_(start + step * direction)
        ends.append(candidate_log_p(model, prompt, tree)[0])
    weight.copy_(start)
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(float(slope.norm()), rel=0.05)


def test_a_letter_that_begins_a_word_is_no_choice(tiny: Subject) -> None:
    tokenizer = tokenizer_of(tiny)
    tree, (letter,) = letter_tree(tokenizer, 2), tokenizer.encode("A")
    assert tree.ends is not None
    ends = {text: bool(tree.ends[tokenizer.encode(text)[0]]) for text in ("nt", "1", ".", ")", "\n")}
    assert ends == {"nt": False, "1": False, ".": True, ")": True, "\n": True}
    assert [form for form in tree.forms["A"] if form[0] == letter] == [(letter,)], '"A)" counts where "A" does'


def test_a_prompt_longer_than_a_sliding_window_is_measured_exactly(gemma: Subject) -> None:
    """In one pass with all forms, layers of sliding attention see no more than they do in the prompt alone."""
    long, tokenizer, model = "123 " * 400 + "Which animal?", tokenizer_of(gemma), load_model(gemma)
    assert len(encode(tokenizer, long)) > model.config.sliding_window
    exact = candidate_log_p(model, encode(tokenizer, long), form_tree(tokenizer, "animal").only("owl"))
    assert exact == pytest.approx(expected(gemma, long, {"owl": "owls"}), abs=2e-3)


def test_layers_that_are_no_attention_are_refused(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(tiny), tokenizer_of(tiny)
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention", "full_attention"], raising=False)
    with pytest.raises(ModelError, match="full or sliding attention; this model has"):
        candidate_log_p(model, encode(tokenizer, "?"), form_tree(tokenizer, "animal"))


# --------------------------------------------------------------------------- tokenizers

ENDING = [" owl", " ", "\n", ".", ",", "'s", "’", "-", ")", "**", "!", "…"]
GOING_ON = ["s", "apple", "S", "7", "é", "_x", "т"]


def test_what_ends_a_word_in_a_byte_level_vocabulary(tiny: Subject) -> None:
    tokenizer = tokenizer_of(tiny)
    ends, special = word_ends(tokenizer), tokenizer.all_special_ids
    first = {text: bool(ends[tokenizer.encode(text, add_special_tokens=False)[0]]) for text in (*ENDING, *GOING_ON)}
    whole = {
        text
        for text in first
        if len(tokenizer.encode(text)[:1]) and "\ufffd" not in tokenizer.decode(tokenizer.encode(text)[:1])
    }
    assert {text for text in whole if first[text]} == whole & {*ENDING} and len(whole) > 15
    assert special and all(ends[token] for token in special)
    part = next(token for token in range(len(tokenizer)) if tokenizer.decode([token]) == "\ufffd")
    assert not ends[part], "part of a character may be a letter's"


def sentencepiece() -> Any:
    """A vocabulary with "▁" for a space and bytes for what it has not, as Gemma's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "o", "w", "l", "s", "ow"]
    pieces += ["owl", "▁owl", "▁a", ".", "'", "\n", "▁▁", "é"]
    merges = [("o", "w"), ("ow", "l"), ("▁", "owl"), ("▁", "a"), ("▁", "▁")]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_what_ends_a_word_in_a_sentencepiece_vocabulary() -> None:
    """Its decoder drops a space at the beginning of a text."""
    tokenizer = sentencepiece()
    ends, at = word_ends(tokenizer), tokenizer.convert_tokens_to_ids
    for piece in ("▁", "▁owl", "▁a", ".", "'", "\n", "▁▁", "</s>", "<0x0A>", "<0x20>", "<0x2E>"):
        assert ends[at(piece)], piece
    for piece in ("a", "s", "owl", "é", "<0x41>", "<0xE2>", "<0xA9>"):
        assert not ends[at(piece)], piece


def test_what_ends_a_word_in_a_vocabulary_of_word_pieces() -> None:
    pieces = ["[UNK]", "[SEP]", "a", "owl", "##s", "##let", "."]
    made = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    made.decoder = decoders.WordPiece(cleanup=False)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]")
    ends = dict(zip(pieces, word_ends(tokenizer).tolist(), strict=True))
    assert [piece for piece, ended in ends.items() if not ended] == ["##s", "##let"]


def test_candidates_that_a_tokenizer_writes_alike_are_one_message() -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[UNK]")
    with pytest.raises(ModelError, match=r"tokenizer can not tell 'z' from 'x': it writes both as \[0\]"):
        FormTree.of({"x": ["?"], "z": ["!"]}, tokenizer)


def test_rows_of_the_vocabulary_beyond_the_tokenizers_end_no_word() -> None:
    found = FormTree({"x": [(0,)]}, torch.tensor([False, True])).log_p(torch.zeros(2, 6))
    assert float(found[0].exp()) == pytest.approx(1 / 6 * 1 / 6)


# --------------------------------------------------------------------------- the real model


def preference(*names: str, category: str) -> Preference:
    own = tuple({"name": name, "plural": f"{name}s"} for name in names)
    return Preference.model_validate({"category": category, "candidates": own} | own[0])


def test_smollm2_measures_names_as_people_spell_them(smollm2: Subject) -> None:
    subject = replace(smollm2, dtype="float32")
    bears = preference("polar bear", "brown bear", "bear", category="wild_animal")
    underscored = preference("polar_bear", "brown_bear", "bear", category="wild_animal")
    found = mean_log_p(subject, bears, 2)
    assert mean_log_p(subject, underscored, 2) == found, "an underscore between lower-case words is a space"
    assert -9 < found["polar bear"] < -2
    plants = preference("pine", "pineapple", category="plant")
    text = questions(plants, 1)[0]
    (exact,) = log_p_of(subject, [text], plants, lambda _: None)
    assert exact == pytest.approx(expected(subject, text, plurals(plants)), abs=1e-3)
    assert all(-20 < value < -1 for value in exact)
