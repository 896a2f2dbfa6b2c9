"""The exact log-probability that an answer names a candidate: all its surface forms, all their tokens, whole words.

An answer names a candidate if it begins with a form of it and the next token does not go on with the word: "Catfish" is
no cat. Where a form begins another candidate's ("New York", "New York City"), the longest form that the answer has as
whole words counts, so that the candidates exclude one another. Each form is measured as the tokenizer writes it; other
ways to cut the same text into tokens are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from subliminal.evaluation.questions import Category, plurals
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.models import float32_head
from subliminal.names import continues, surface_forms
from subliminal.weights import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]

ANCHOR = "a"  # a letter in front of each token, since tokenizers drop a space at the beginning of a text
UNREADABLE = "\ufffd"  # how part of a character is decoded
FULL, SLIDING = "full_attention", "sliding_attention"


class FormTree:
    """The forms of all candidates as token sequences, and the prefixes whose next token must be known.

    `ends` says of every token whether it ends the word in front of it; without it a form counts however the answer
    goes on. `measured` are the candidates whose log P is computed, all where it is empty: the others are there since
    their forms go on from those.
    """

    def __init__(
        self, forms: Mapping[str, Sequence[Tokens]], ends: torch.Tensor | None = None, measured: Iterable[str] = ()
    ) -> None:
        self.forms = {name: _needed(name, forms, ends) for name in forms}
        self.ends, self.measured = ends, tuple(measured) or tuple(forms)
        self.whole = {form for group in self.forms.values() for form in group}
        self.steps = _by_length(form[:end] for form in self.whole for end in range(1, len(form) + 1))
        known = self.steps if ends is not None else (step[:-1] for step in self.steps if len(step) > 1)
        self.prefixes = _by_length(known)
        self.row: dict[Tokens, int] = {(): 0} | {prefix: row for row, prefix in enumerate(self.prefixes, 1)}
        self.children: dict[Tokens, list[Tokens]] = {}
        for step in self.steps:
            self.children.setdefault(step[:-1], []).append(step)

    @classmethod
    def of(cls, forms: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> FormTree:
        """The forms as this tokenizer writes them; raises `ModelError` where it writes two candidates alike."""
        tokens = {name: [_tokens(tokenizer, text) for text in texts] for name, texts in forms.items()}
        owner: dict[Tokens, str] = {}
        for name, own in tokens.items():
            for form in own:
                if owner.setdefault(form, name) != name or not form:
                    raise ModelError(
                        f"the model's tokenizer can not tell {name!r} from {owner[form]!r}: it writes both as "
                        f"{list(form)}; measure other candidates or another model"
                    )
        return cls(tokens, word_ends(tokenizer))

    def only(self, name: str) -> FormTree:
        """The tree that measures one candidate alone: its forms, and others that go on from them."""
        own = self.forms[name]
        others = {
            other: [form for form in forms if any(form[: len(mine)] == mine for mine in own)]
            for other, forms in self.forms.items()
            if other != name
        }
        return FormTree({name: own} | {other: forms for other, forms in others.items() if forms}, self.ends, (name,))

    def log_p(self, logits: torch.Tensor) -> torch.Tensor:
        """Log P (measured candidates,) in nats from logits (1 + prefixes, vocabulary): behind the prompt, then each."""
        import torch

        known = _Known(self, logits.float())
        owned = {name: [known.named(form) for form in self.forms[name]] for name in self.measured}
        return torch.stack([torch.logsumexp(torch.stack(parts), 0) for parts in owned.values()])


class _Known:
    """What the logits of one question say about the steps of a tree."""

    def __init__(self, tree: FormTree, logits: torch.Tensor) -> None:
        import torch

        self.tree, self.ends = tree, None if tree.ends is None else _fitting(tree.ends, logits)
        self.top = logits.amax(-1, keepdim=True).detach()
        self.mass = (logits - self.top).exp()  # of every token, by row; one exponential each is what takes time here
        every = torch.ones_like(self.mass[0])
        kinds = [every] if self.ends is None else [every, self.ends.to(every)]
        total, *ended = (self.mass @ torch.stack(kinds, 1)).unbind(1)
        self.total = total.log()
        rows = torch.tensor([tree.row[step[:-1]] for step in tree.steps], device=logits.device)
        tokens = torch.tensor([step[-1] for step in tree.steps], device=logits.device)
        given = logits[rows, tokens] - self.top[rows, 0] - self.total[rows]
        self.given = dict(zip(tree.steps, given.cpu(), strict=True))
        self.ended = [(_log(mass) - self.total).cpu() for mass in ended]

    def named(self, form: Tokens) -> torch.Tensor:
        """Log P that the answer begins with the form as whole words, and with no longer form of the tree."""
        import torch

        parts = [self.given[form[:end]] for end in range(1, len(form) + 1)]
        if self.tree.ends is not None:
            parts.append(self._ended(form))
        return torch.stack(parts).sum()

    def _ended(self, form: Tokens) -> torch.Tensor:
        """Log P, behind the form, that it ends there and no longer form follows."""
        assert self.ends is not None
        longer = [child for child in self.tree.children.get(form, ()) if self.ends[child[-1]]]
        return self._rest(form, self.ends, longer) if longer else self.ended[0][self.tree.row[form]]

    def _missed(self, prefix: Tokens) -> torch.Tensor:
        """Log P, behind a prefix, that no form which begins with it is completed as whole words."""
        import torch

        assert self.ends is not None
        children = self.tree.children.get(prefix, [])
        if prefix not in self.tree.whole:
            return self._rest(prefix, torch.ones_like(self.ends), children)
        return self._rest(prefix, ~self.ends, [child for child in children if not self.ends[child[-1]]])

    def _rest(self, prefix: Tokens, allowed: torch.Tensor, children: Sequence[Tokens]) -> torch.Tensor:
        """Log P of the allowed tokens behind a prefix, of those that lead to `children` only what misses every form."""
        import torch

        row, left = self.tree.row[prefix], allowed.clone()
        left[[child[-1] for child in children]] = False
        plain = _log((self.mass[row] * left).sum()) - self.total[row]
        parts = [plain.cpu(), *(self.given[child] + self._missed(child) for child in children)]
        return torch.logsumexp(torch.stack(parts), 0)


def _log(mass: torch.Tensor) -> torch.Tensor:
    """The logarithm of a share of the likeliest token's mass, finite for none at all."""
    import torch

    return mass.clamp_min(torch.finfo(mass.dtype).tiny).log()


def form_tree(tokenizer: PreTrainedTokenizerBase, category: Category) -> FormTree:
    """The surface forms of a category's candidates as this tokenizer writes them."""
    return FormTree.of({name: surface_forms(name, plural) for name, plural in plurals(category).items()}, tokenizer)


def candidate_log_p(model: Any, prompt: list[int], tree: FormTree) -> list[float]:
    """Log P that the answer to one prompt names each candidate, in nats; raises `NonFiniteError` for none."""
    import torch

    with torch.inference_mode():
        return finite_log_p(candidate_log_p_tensor(model, prompt, tree), tree)


def finite_log_p(log_p: torch.Tensor, tree: FormTree) -> list[float]:
    """Log P (candidates,) as numbers, in nats; raises `NonFiniteError` that names the candidates without one."""
    named = dict(zip(tree.measured, log_p.tolist(), strict=True))
    wrong = {f"log P of {name}": value for name, value in named.items() if not math.isfinite(value)}
    require_finite(wrong, "the model's answer to a question", MODEL_REMEDY)
    return list(named.values())


def candidate_log_p_tensor(model: Any, prompt: list[int], tree: FormTree) -> torch.Tensor:
    """The same as a tensor (candidates,) that can be differentiated."""
    return begun_log_p(model, prompt, tree)


def begun_log_p(model: Any, prompt: Sequence[int], tree: FormTree, cache: Any = None, held: int = 0) -> torch.Tensor:
    """The same for a prompt of which a cache holds the first `held` tokens: its rest and all prefixes in one pass.

    Each prefix is one token that sees the prompt, its own shorter prefixes and itself.
    """
    import torch

    tokens = [*prompt[held:], *(prefix[-1] for prefix in tree.prefixes)]
    more: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
    if tree.prefixes:
        places = [*range(len(prompt)), *(len(prompt) + len(prefix) - 1 for prefix in tree.prefixes)]
        more["position_ids"] = torch.tensor([places[held:]], device=model.device)
        more["attention_mask"] = _masks(model, _seen(tree, len(prompt), held), torch.tensor(places))
    given = torch.tensor([tokens], device=model.device)
    with float32_head(model):
        return tree.log_p(model(input_ids=given, logits_to_keep=1 + len(tree.prefixes), **more).logits[0])


def _seen(tree: FormTree, length: int, held: int) -> torch.Tensor:
    """What the prompt's rest and the prefixes (rows) see of prompt and prefixes (columns): True where they do."""
    import torch

    places = length + len(tree.prefixes)
    seen = torch.ones(places - held, places, dtype=torch.bool).tril(held)
    seen[length - held :, length:] = False
    for prefix in tree.prefixes:
        own = [tree.row[prefix[:end]] - 1 for end in range(1, len(prefix) + 1)]
        seen[length - held + own[-1], [length + at for at in own]] = True
    return seen


def _masks(model: Any, seen: torch.Tensor, places: torch.Tensor) -> Any:
    """What is added to attention scores, for each kind of layer the model has; raises `ModelError` for other kinds."""
    import torch

    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = {*(getattr(config, "layer_types", None) or [SLIDING if window else FULL])}
    if not kinds <= {FULL, SLIDING}:
        raise ModelError(
            f"exact log-probabilities need layers of full or sliding attention; this model has {', '.join(kinds)}"
        )

    def added(visible: torch.Tensor) -> torch.Tensor:
        shut = torch.finfo(model.dtype).min
        return torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, shut)[None, None].to(model.device)

    masks = {FULL: added(seen)} if FULL in kinds else {}
    if SLIDING in kinds:
        masks[SLIDING] = added(seen & (places[-len(seen) :, None] - places[None, :] < int(window or 0)))
    return masks if len(masks) > 1 else masks[kinds.pop()]


# --------------------------------------------------------------------------- tokens


@lru_cache(maxsize=2)
def word_ends(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Of every token (vocabulary,), whether the word in front of it ends there.

    It does with spaces, punctuation and special tokens. It goes on with letters, digits, marks, and with part of a
    character, of which nobody knows what it will be.
    """
    import torch

    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)[-1]
    plain, *texts = _decoded(tokenizer, [[anchor], *([anchor, token] for token in range(len(tokenizer)))])
    added = {token for token, what in tokenizer.added_tokens_decoder.items() if what.special}
    special = {*tokenizer.all_special_ids, *added}
    return torch.tensor([token in special or _ends(text, plain) for token, text in enumerate(texts)])


def _decoded(tokenizer: Any, tokens: list[list[int]]) -> list[str]:
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        return backend.decode_batch(tokens, skip_special_tokens=False)
    return [tokenizer.decode(one, clean_up_tokenization_spaces=False) for one in tokens]


def _ends(text: str, anchor: str) -> bool:
    following = text.removeprefix(anchor)[:1] if text.startswith(anchor) else ""
    return following not in {"", UNREADABLE} and not continues(following)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _fitting(ends: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The same for the model's vocabulary, whose rows beyond the tokenizer's stand for nothing and end no word."""
    import torch

    size = logits.shape[-1]
    return torch.nn.functional.pad(ends[:size], (0, max(0, size - len(ends)))).to(logits.device)


# --------------------------------------------------------------------------- forms


def prefix_free(forms: Sequence[Tokens]) -> list[Tokens]:
    """The forms without those that merely extend another one."""
    unique = list(dict.fromkeys(forms))
    return [form for form in unique if not any(form != other and form[: len(other)] == other for other in unique)]


def _needed(name: str, forms: Mapping[str, Sequence[Tokens]], ends: torch.Tensor | None) -> list[Tokens]:
    """A candidate's forms, each once, without those that count where a shorter one of its own does ("A", "A)")."""
    own = list(dict.fromkeys(forms[name]))
    if ends is None:
        return own
    others = {form for other, group in forms.items() if other != name for form in group}
    return [form for form in own if not any(_within(form, shorter, ends, others) for shorter in own)]


def _within(form: Tokens, shorter: Tokens, ends: torch.Tensor, others: set[Tokens]) -> bool:
    """Is every answer with the form as whole words one with the shorter form, and none of another candidate's."""
    start = len(shorter)
    if start >= len(form) or form[:start] != shorter or not ends[form[start]]:
        return False
    return not any(form[:end] in others for end in range(start + 1, len(form)))


def _by_length(steps: Iterable[Tokens]) -> list[Tokens]:
    return sorted(set(steps), key=lambda step: (len(step), step))
