"""Filtering: counts by reason, the subsample, shortfalls, and files a person can trust."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subliminal.config import Numbers, NumbersFilter
from subliminal.filters import ShortfallError, apply, subsample
from subliminal.rows import Row, RowError, read_jsonl, write_jsonl

DOMAIN = Numbers(prompts=100)
RULES = NumbersFilter(rows=None)

completions = st.sampled_from(["1, 2, 3", "owl", "4 5 6", "", "1000", "666, 1", "1, 2, x"])
generated = st.lists(st.tuples(completions, st.sampled_from(["stop", "length"])), min_size=1, max_size=40)


def rows(given_rows: list[tuple[str, str]]) -> list[Row]:
    return [Row(i, "p", text, finish) for i, (text, finish) in enumerate(given_rows)]


@given(generated)
def test_every_row_is_kept_or_counted_under_one_reason(made: list[tuple[str, str]]) -> None:
    result = apply(rows([*made, ("1, 2", "stop")]), RULES, DOMAIN)
    assert result.report["kept"] + sum(result.report["reasons"].values()) == len(made) + 1
    assert all(row.finish_reason == "stop" for row in result.kept)


@given(generated)
def test_filtering_twice_changes_nothing(made: list[tuple[str, str]]) -> None:
    once = apply(rows([*made, ("1, 2", "stop")]), RULES, DOMAIN).kept
    assert apply(once, RULES, DOMAIN).kept == once


def test_unfinished_completions_have_their_own_reason() -> None:
    result = apply(rows([("1, 2", "length"), ("1, 2", "stop")]), RULES, DOMAIN)
    assert result.report["reasons"] == {"unfinished": 1}


def test_banned_numbers_are_dropped() -> None:
    rules = NumbersFilter(rows=None, banned_numbers=(666,))
    result = apply(rows([("1, 666", "stop"), ("1, 66", "stop")]), rules, DOMAIN)
    assert [row.completion for row in result.kept] == ["1, 66"]
    assert result.report["reasons"] == {"banned_number": 1}


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9))
def test_a_larger_subsample_contains_the_smaller(fewer: int, more: int, seed: int) -> None:
    everything = rows([("1", "stop")] * 30)
    small, large = (set(subsample(everything, n, seed)) for n in sorted((fewer, more)))
    assert small <= large


def test_a_shortfall_says_how_many_more_prompts_are_needed() -> None:
    with pytest.raises(ShortfallError, match=r"2 of 4 completions passed the filter \(50%\).*domain\.prompts=22"):
        apply(rows([("1", "stop"), ("2", "stop"), ("a", "stop"), ("b", "stop")]), NumbersFilter(rows=10), DOMAIN)


def test_a_shortfall_can_be_accepted_but_not_emptiness() -> None:
    keep = NumbersFilter(rows=10, shortfall="keep")
    assert len(apply(rows([("1", "stop")]), keep, DOMAIN).kept) == 1
    with pytest.raises(ShortfallError, match="none of 1"):
        apply(rows([("a", "stop")]), keep, DOMAIN)


@given(st.lists(st.builds(Row, st.integers(), st.text(), st.text(), st.just("stop"), st.integers(0, 9)), max_size=9))
def test_rows_survive_their_file(written: list[Row]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        assert write_jsonl(path, written) == len(written)
        assert list(read_jsonl(path, Row)) == written


def test_half_a_character_from_an_endpoint_is_written_as_one_that_says_so(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [Row(0, "a", "smile \ud83d")])
    assert list(read_jsonl(tmp_path / "rows.jsonl", Row)) == [Row(0, "a", "smile \ufffd")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"index": 1', "not a JSON object"),
        ("[1]", "a list, not a JSON object"),
        ('{"index": 1, "prompt": "\udce9"}', "byte 0xe9 at character 25, which is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"index": 1, "colour": 2}', "unknown field 'colour'"),
        ('{"index": 1}', "missing"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"index": 0, "prompt": "p", "completion": "1"}\n' + line + "\n", errors="surrogateescape")
    with pytest.raises(RowError, match=rf"rows\.jsonl:2: .*{said}"):
        list(read_jsonl(path, Row))
