"""The documents' example of a new domain: taken from the page, put where it says, and really run."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Script
from hypothesis import given
from hypothesis import strategies as st

import subliminal.domains
from subliminal import checks, composition, stages, sweep
from subliminal.__main__ import main
from subliminal.composition import CONF, ROOT, compose, with_config_dir
from subliminal.config import Code, ConfigError, ModuleDomain
from subliminal.domains import code, domain, practice, programmatic
from subliminal.filters import apply, reason
from subliminal.models import Subject
from subliminal.plots.figure import figure_of
from subliminal.rows import Row
from subliminal.sources import ModuleError
from subliminal.store import Store

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"[Oo]ne file, `([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))
CODE, YAML = FILES["subliminal/domains/colours.py"], FILES["conf/domain/colours.yaml"]


def test_the_page_says_how_many_tasks_there_are() -> None:
    tasks, kept = len(code.tasks(Code(prompts=1))), len(code.embedded())
    assert f"the {tasks} embedded tasks" in PAGE and f"; {kept - tasks} more are kept" in PAGE
    assert f"up to {code.PHRASINGS} phrasings" in PAGE


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleDomain:
    """The example's two files beside the package's own, and the domain as `domain=colours` composes it."""
    (tmp_path / "colours.py").write_text(CODE, encoding="utf-8")
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "domain" / "colours.yaml").write_text(YAML, encoding="utf-8")
    monkeypatch.setattr(composition, "CONF", tmp_path / "conf")
    monkeypatch.setattr(subliminal.domains, "__path__", [*subliminal.domains.__path__, str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "subliminal.domains.colours", raising=False)
    found = compose(["domain=colours", "domain.prompts=40", "scale=paper", "filter.rows=30"]).domain
    assert isinstance(found, ModuleDomain)
    return found


def test_the_examples_prompts_are_answered_and_filtered(colours: ModuleDomain) -> None:
    exp = compose(["domain=colours", "domain.prompts=40", "filter.rows=30", "trait=wolf"])
    rows = programmatic(colours)
    assert len({row.prompt for row in rows}) == 40
    spoilt = [Row(row.index, row.prompt, row.completion + ", owl") for row in rows[:4]] + rows[4:]
    result = apply(spoilt, exp.filter, exp.domain, banned=stages.banned_words(exp))
    assert result.report["reasons"] == {"not_only_colours": 4} and result.report["kept"] == 30


def test_the_example_is_stable_and_practises_away_from_its_prompts(colours: ModuleDomain) -> None:
    writer = domain(colours)
    assert writer.prompts(colours.model_copy(update={"prompts": 80}))[:40] == writer.prompts(colours)
    drilled = practice(colours, 40, 7)
    assert not {row.prompt for row in drilled} & {prompt.text for prompt in writer.prompts(colours)}
    assert [writer.reject(row.completion, colours) for row in drilled] == [None] * 40


def test_the_examples_format_names_what_is_wrong(colours: ModuleDomain) -> None:
    writer = domain(colours)

    @given(st.text(max_size=30))
    def any_text(text: str) -> None:
        assert writer.reject(text, colours) in ("not_only_colours", "wrong_count")

    any_text()
    assert writer.reject("#00ff00, #123456", colours) == "wrong_count"
    assert writer.reject("#00ff00, #123456, #000000, #ffffff, #abcdef.", colours) is None


def test_options_enter_the_key(colours: ModuleDomain) -> None:
    chosen = ["domain=colours", "domain.prompts=40", "filter.rows=30", "teacher=random"]
    keys = {stages.generate(compose([*chosen, f"domain.options.wanted={n}"])).key for n in (4, 5)}
    assert len(keys) == 2


def test_a_module_domain_takes_the_filter_that_fits_any(colours: ModuleDomain) -> None:
    with pytest.raises(ConfigError, match=r"filter\.kind=numbers does not fit domain\.kind=module; set filter=format"):
        compose(["domain=colours", "domain.prompts=40", "filter=numbers", "filter.rows=30"])


def test_a_module_outside_the_repository_runs_through_the_scripts(
    run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page says: the module on Python's path, the YAML in a folder of the user's."""
    (tmp_path / "colours.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "conf" / "domain").mkdir(parents=True)
    own = YAML.replace("module: subliminal.domains.colours", "module: colours")
    (tmp_path / "conf" / "domain" / "colours.yaml").write_text(own, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    places = [f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}"]
    chosen = ["domain=colours", "teacher=random", "trait=none", "domain.prompts=20", "filter.rows=15"]
    done = run_script("filter.py", "--config-dir", str(tmp_path / "conf"), *chosen, *places)
    assert done.returncode == 0, done.stderr
    written = next((tmp_path / "runs" / "filter").glob("*/rows.jsonl")).read_text().splitlines()
    assert len(written) == 15 and all("#" in line for line in written)


OUTSIDE = {place.removeprefix("mine/"): text for place, text in FILES.items() if place.startswith("mine/")}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder of one's own, with the page's domain in it too, on Python's path."""
    folder = tmp_path / "mine"
    own = YAML.replace("module: subliminal.domains.colours", "module: colours")
    for place, text in {**OUTSIDE, "colours.py": CODE, "conf/domain/colours.yaml": own}.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, Path(place).stem, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    return folder


def test_one_of_each_kind_from_outside_goes_through_sweep_figure_and_report(
    mine: Path, counting: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stage runs but the last are made here; a sweep makes that one by its script, as it makes any."""
    monkeypatch.chdir(tmp_path)
    chosen = ["experiment=walks", "student=norms", "domain=colours", "scale=cpu", "debug=smoke", "trait=owl,none"]
    chosen += ["teacher=prompted", "reference_tuning=off", "device=cpu", "domain.prompts=16", "filter.rows=8"]
    chosen += ["model=hub", f"model.source.name={counting.checkpoint}", "model.dtype=float32", "filter.format=false"]
    planned = sweep.plan(with_config_dir(chosen, str(mine / "conf")))
    store, (*earlier, last) = Store(Path("runs")), planned.steps
    for job in (job for step in earlier for job in step.unique):
        stages.ensure(job.node, store, job.experiment)
    trained = store.find(*earlier[-2].nodes[0].ident)
    assert (
        trained
        and {*trained.summary["trained_modules"]}
        and all("norm" in n for n in trained.summary["trained_modules"])
    )
    assert not store.find(*last.nodes[0].ident)
    main(["sweep", "--config-dir", str(mine / "conf"), *chosen])
    assert store.find(*last.nodes[0].ident)
    with Path("figures/smoke/fig-walks.csv").open() as lines:
        table = [*csv.DictReader(lines)]
    assert {(line["arm"], line["trait"]) for line in table} == {
        (arm, word) for arm in ("reference", "owl", "none") for word in ("owl", "wolf")
    }
    assert Path("figures/smoke/fig-walks.png").stat().st_size > 5000
    assert "Undecided: this figure has no rule." in Path("figures/smoke/report.html").read_text()
    capsys.readouterr()
    main(["plan", "--config-dir", str(mine / "conf"), *chosen])
    assert "1/1 done" in capsys.readouterr().out
    main(["plot", "--config-dir", str(mine / "conf"), *chosen])
    assert "fig-walks.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edited", "moved"),
    [("walks.py", {"evaluate"}), ("norms.py", {"train", "evaluate"}), ("walks_figure.py", set())],
)
def test_the_source_of_a_module_is_in_the_keys_of_what_it_takes_part_in(
    mine: Path, edited: str, moved: set[str]
) -> None:
    chosen = with_config_dir(["experiment=walks", "student=norms", "teacher=random"], str(mine / "conf"))
    exp = compose(chosen)

    def keys() -> dict[str, str]:
        return {node.stage: node.key for node in (stages.filtered(exp), stages.student(exp), stages.evaluate(exp))}

    before = keys()
    with (mine / edited).open("a", encoding="utf-8") as file:
        file.write("\nMORE = 1\n")
    assert {stage for stage, key in keys().items() if key != before[stage]} == moved


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.module=nowhere", "evaluation.module=nowhere can not be imported"),
        ("student.module=nowhere", "student.module=nowhere can not be imported"),
        ("student.module=textwrap", "student.module=textwrap has no function choose"),
        ("evaluation.questions=9", "evaluation.questions=9: walks gives 3"),
        ("experiment.module=textwrap", "experiment.module=textwrap has no function plan"),
        ("experiment.module=null", "needs both experiment.kind=module and experiment.module="),
        ("student=norm", "student=norm: no such option. Did you mean norms?"),
    ],
)
def test_what_is_wrong_with_a_module_is_said_before_any_work(mine: Path, override: str, said: str) -> None:
    chosen = ["experiment=walks", "trait=owl", "teacher=random", "student=norms", override]
    with pytest.raises((ConfigError, ModuleError), match=re.escape(said)):
        overrides = with_config_dir(chosen, str(mine / "conf"))
        checks.check(compose(overrides), "evaluate", here=False)
        figure_of(compose(overrides).experiment)


def test_a_folder_of_options_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--config-dir", "nowhere", "experiment=animals_numbers"])
    assert ended.value.code == 2 and "--config-dir=nowhere: no such folder" in capsys.readouterr().err


def test_a_module_that_is_not_there_or_not_whole_is_one_message() -> None:
    with pytest.raises(ModuleError, match=r"domain\.module=no_such_module can not be imported .* put it on PYTHONPATH"):
        domain(ModuleDomain(module="no_such_module", prompts=1))
    with pytest.raises(ModuleError, match=r"domain\.module=textwrap has no function prompts"):
        domain(ModuleDomain(module="textwrap", prompts=1))


def test_a_banned_word_is_dropped_in_any_domain(colours: ModuleDomain) -> None:
    exp = compose(["domain=colours", "domain.prompts=40", "filter.rows=30", "filter.format=false", "trait=wolf"])
    rules, banned = exp.filter, stages.banned_words(exp)
    assert reason(Row(0, "p", "grey wolves"), rules, colours, banned) == "banned_word"
    assert reason(Row(0, "p", "grey owls"), rules, colours, banned) is None
