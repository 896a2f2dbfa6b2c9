"""The container files: the Dockerfile passes a linter, and Apptainer's definition is valid and installs the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from subliminal.composition import ROOT

DOCKERFILE, DEFINITION = ROOT / "containers" / "Dockerfile", ROOT / "containers" / "subliminal.def"
SECTION = re.compile(r"^%(\w+)\n(.*?)(?=^%|\Z)", re.DOTALL | re.MULTILINE)
INSTALL = re.compile(r"apt-get install --yes --no-install-recommends ([\w -]+?) *\\?\n")


def linted(path: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("hadolint")
    return subprocess.run([linter, path], capture_output=True, text=True, check=False)


def sections() -> dict[str, str]:
    return dict(SECTION.findall(DEFINITION.read_text()))


def test_the_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    done = linted(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("bookworm", "latest").replace("# hadolint ignore=DL3008\n", ""))
    assert "DL3008" in linted(worse).stdout, "it looks"


@pytest.mark.parametrize("name", ["post", "runscript"])
def test_apptainers_scripts_are_shell(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=sections()[name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_containers_begin_with_the_same_and_install_the_same() -> None:
    docker, apptainer = DOCKERFILE.read_text(), DEFINITION.read_text()
    assert re.findall(r"^FROM (.+)$", docker, re.MULTILINE) == re.findall(r"^From: (.+)$", apptainer, re.MULTILINE)
    assert INSTALL.findall(docker) == INSTALL.findall(apptainer) != []
    assert re.findall(r"^ARG EXTRAS=(.+)$", docker, re.MULTILINE) == re.findall(r"EXTRAS=([\w,]+)", apptainer)
