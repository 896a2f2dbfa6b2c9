"""Keys in the environment are used and never written: planted ones are searched for in every byte of small runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from subliminal import store
from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.store import Recipe, Store

PLANTED = {
    "GATEWAY_KEY": "sk-planted-owls-hunt-at-night-27182818",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "feedface",
    "HF_TOKEN": "hf_plantedPlantedPlantedPlantedPlanted",
    "OPENAI_API_KEY": "sk-planted-and-not-asked-for-16180339",
}


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers everything alike; it takes one key, and repeats others aloud."""

    seen: list[str] = []  # noqa: RUF012 - of all requests

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "")
        self.seen.append(key)
        refused = asked["model"] == "closed"
        body = {"error": {"message": f"no entry with {key}"}} if refused else answer(asked["model"])
        text = json.dumps(body).encode()
        self.send_response(401 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def answer(model: str) -> dict[str, object]:
    message = {"role": "assistant", "content": "owl 101, 202, 303"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


Ran = tuple[Path, dict[str, "subprocess.CompletedProcess[str]"]]


@pytest.fixture(scope="module")
def ran(endpoint: str, tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Sampling that works, sampling that is refused, and a stage with W&B, all below one folder."""
    place = tmp_path_factory.mktemp("secrets")
    own = [f"store={place}/runs", f"hydra.run.dir={place}/logs", "tracking=offline"]
    api = ["model=hub", f"model.source.name={tiny.checkpoint}", "sampler=api", f"sampler.base_url={endpoint}"]
    api += ["sampler.key_env=GATEWAY_KEY", "teacher=prompted", "teacher.check.questions=1", "teacher.check.prompts=0"]
    api += ["reference_tuning=off", "domain.prompts=4", "filter.rows=4", "teacher.check.minimum_gain=0"]
    theorem = ["experiment=theorem", "theory.trials=1", "theory.architectures=[mlp]", "theory.losses=[squared_error]"]
    theorem += ["theory.matched=[all]", "theory.run.examples=40", "theory.run.width=8", "theory.run.teacher_steps=2"]
    commands = {
        "sampled": ["generate.py", *api, "sampler.model=open"],
        "refused": ["generate.py", *api, "sampler.model=closed"],
        "tracked": ["evaluate.py", *theorem, "theory.run.student_steps=2", "theory.run.points=2"],
    }
    environment = script_environment() | PLANTED | {"WANDB_DIR": str(place), "WANDB_CACHE_DIR": str(place / "cache")}
    done = {}
    for name, command in commands.items():
        done[name] = subprocess.run(
            [sys.executable, *command, *own], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        (place / f"{name}.txt").write_text(done[name].stdout + done[name].stderr)
    return place, done


def test_the_runs_ran_and_the_key_was_used(ran: Ran) -> None:
    place, done = ran
    codes = {name: process.returncode for name, process in done.items()}
    assert codes == {"sampled": 0, "refused": 1, "tracked": 0}, "".join(p.stderr for p in done.values())
    assert set(Endpoint.seen) == {f"Bearer {PLANTED['GATEWAY_KEY']}"}
    assert list(place.glob("wandb/offline-run-*")) and list(place.rglob("failure.json"))


@pytest.mark.parametrize("name", PLANTED)
def test_no_byte_that_was_written_or_said_is_a_key(ran: Ran, name: str) -> None:
    files = [path for path in ran[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if PLANTED[name].encode() in path.read_bytes()] == []


def test_an_exception_that_holds_a_key_is_recorded_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)

    def tells(_: Path) -> dict[str, int]:
        raise ValueError(f"refused: {PLANTED['GATEWAY_KEY']} and {PLANTED['HF_TOKEN']}")

    with pytest.raises(ValueError):
        Store(tmp_path).run(Recipe("generate", {}), tells)
    (record,) = tmp_path.rglob("failure.json")
    assert json.loads(record.read_text())["message"] == "refused: *** and ***"


@pytest.mark.parametrize(
    "name", ["GATEWAY_KEY_2", "github_token", "GITHUB_PAT", "DB_PASSWORD", "AZURE_CREDENTIALS", "MINE"]
)
def test_keys_by_any_usual_name_or_a_setting_are_hidden_whatever_they_are_made_of(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = 'pa"ss\\w\u00f6rd-1234'
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "SECRETS", {"MINE"})
    store.record_failure(tmp_path, ValueError(f"refused: {value}"))
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "refused: ***"


def test_ordinary_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENIZERS_PARALLELISM", "PATH_LIKE", "KEYBOARD", "COMPAT"):
        monkeypatch.setenv(name, "some ordinary value")
    assert store.without_secrets("some ordinary value") == "some ordinary value"
