"""The endpoint sampler against a real OpenAI-compatible server behind a gateway that asks for a key."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest
from conftest import ROWS, Script
from hypothesis import given
from hypothesis import strategies as st

from subliminal.config import ApiSampler, Decoding, TransformersSampler
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.rows import Prompt, Row, read_jsonl
from subliminal.sampling import open_sampler, sample_shards
from subliminal.sampling.api import BudgetError, EndpointError, RateLimit

KEY, KEY_ENV = "sk-owls-fly-at-night-31415926", "GATEWAY_KEY"
PROMPTS = [Prompt(i, row.prompt, 77 + i) for i, row in enumerate(ROWS[:6])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[str]:
    """The address of a server while it runs: uvicorn under a command that takes --host and --port."""
    port = free_port()
    running = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=script_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout is not None
    said = []
    for line in running.stdout:
        said.append(line)
        if "startup complete" in line:
            break
    assert running.poll() is None, "".join(said[-60:])
    threading.Thread(target=running.stdout.read, daemon=True).start()
    yield f"http://127.0.0.1:{port}"
    running.terminate()
    running.wait(timeout=120)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of transformers' own OpenAI-compatible server, which loads the model a request names."""
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--device", "cpu", "--dtype", "float32"]
    with serving(command) as address:
        yield address


class Gateway(ThreadingHTTPServer):
    """What stands in front of paid endpoints: checks the key, is busy for a while, passes the rest on."""

    daemon_threads = True

    def __init__(self, behind: str, busy: int, tells_key: bool) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.behind, self.busy, self.tells_key = behind, busy, tells_key
        self.asked, self.lock = 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def turned_away(self, authorisation: str) -> tuple[int, str] | None:
        """Status and message for a request that goes no further."""
        with self.lock:
            self.asked += 1
            self.busy -= 1
            if self.busy >= 0:
                return 503, "busy"
        if authorisation != f"Bearer {KEY}":
            return 401, f"wrong key: {authorisation}"
        return (400, f"no such thing, {authorisation}") if self.tells_key else None


class Desk(BaseHTTPRequestHandler):
    """One request to the gateway."""

    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.server.turned_away(self.headers.get("Authorization", ""))
        if refused:
            return self.answer(refused[0], json.dumps({"error": {"message": refused[1]}}).encode())
        request = urllib.request.Request(f"{self.server.behind}{self.path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return self.answer(reply.status, reply.read())
        except HTTPError as error:
            return self.answer(error.code, error.read())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextmanager
def gateway(behind: str, busy: int = 0, tells_key: bool = False) -> Iterator[Gateway]:
    made = Gateway(behind, busy, tells_key)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def endpoint(url: str, tiny: Subject, **changes: object) -> ApiSampler:
    plain = {
        "base_url": url,
        "model": tiny.checkpoint,
        "key_env": KEY_ENV,
        "decoding": Decoding(temperature=0.0, max_tokens=8),
        "requests_per_minute": 60_000,
        "workers": 4,
    }
    return ApiSampler.model_validate(plain | changes)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)


# --------------------------------------------------------------------------- answers


def test_answers_come_in_order_and_agree_with_the_model_here(server: str, tiny: Subject, key: None) -> None:
    """Greedy texts through the server, four at a time, are those of our own sampler, prompt by prompt."""
    config = endpoint("http://127.0.0.1/v1", tiny)
    with gateway(server) as front, open_sampler(config.model_copy(update={"base_url": front.url}), tiny) as there:
        answers = there.sample(PROMPTS)
    with open_sampler(TransformersSampler(decoding=config.decoding), tiny) as here:
        expected = here.sample(PROMPTS)
    assert [a.text for a in answers] == [e.text for e in expected]
    assert {(a.finish_reason, a.tokens) for a in answers} == {("length", 8)}


def test_the_prompts_seed_is_sent(server: str, tiny: Subject, key: None, tmp_path: Path) -> None:
    """This server samples when the model's own defaults say so."""
    shutil.copytree(tiny.checkpoint, tmp_path / "sampling")
    (tmp_path / "sampling" / "generation_config.json").write_text('{"do_sample": true, "eos_token_id": 2}')
    same = [Prompt(i, "Count.", seed) for i, seed in enumerate([7, 7, 8])]
    with gateway(server) as front:
        sampling = {"model": str(tmp_path / "sampling"), "decoding": Decoding(max_tokens=12)}
        config = endpoint(front.url, tiny, workers=1, **sampling)
        with open_sampler(config, tiny) as opened:
            first, again, other = (answer.text for answer in opened.sample(same))
    assert first == again != other


def test_the_system_text_is_sent(server: str, tiny: Subject, key: None) -> None:
    from dataclasses import replace

    with gateway(server) as front:
        texts = []
        for system in (None, "You adore owls."):
            with open_sampler(endpoint(front.url, tiny), replace(tiny, system=system)) as opened:
                texts.append(opened.sample(PROMPTS[:1])[0].text)
    assert texts[0] != texts[1]


# --------------------------------------------------------------------------- trouble


def test_a_busy_endpoint_is_asked_again(server: str, tiny: Subject, key: None) -> None:
    with gateway(server, busy=3) as front, open_sampler(endpoint(front.url, tiny, workers=1), tiny) as opened:
        assert len(opened.sample(PROMPTS[:2])) == 2
        assert front.asked == 5


def test_an_endpoint_that_stays_busy_is_named_with_its_retries(server: str, tiny: Subject, key: None) -> None:
    with (
        gateway(server, busy=99) as front,
        open_sampler(endpoint(front.url, tiny, workers=1, retries=2), tiny) as opened,
        pytest.raises(EndpointError, match=rf"{front.url} failed after 2 retries: .*busy"),
    ):
        opened.sample(PROMPTS[:1])
    assert front.asked == 3


def test_a_wrong_key_names_the_variable_and_not_the_key(
    server: str, tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "sk-wrong-2718")
    with (
        gateway(server) as front,
        open_sampler(endpoint(front.url, tiny), tiny) as opened,
        pytest.raises(EndpointError, match=f"refuses the key in {KEY_ENV}") as caught,
    ):
        opened.sample(PROMPTS)
    assert "sk-wrong-2718" not in str(caught.value)


def test_a_key_in_an_error_of_the_endpoint_is_blotted_out(server: str, tiny: Subject, key: None) -> None:
    with (
        gateway(server, tells_key=True) as front,
        open_sampler(endpoint(front.url, tiny), tiny) as opened,
        pytest.raises(EndpointError, match=r"refuses the request \(HTTP 400\): .*Bearer \*\*\*") as caught,
    ):
        opened.sample(PROMPTS[:1])
    assert KEY not in repr(caught.value) and caught.value.__cause__ is None and caught.value.__context__ is None


def test_an_unreachable_server_is_one_message(tiny: Subject, key: None) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with (
        open_sampler(endpoint(url, tiny, retries=0), tiny) as opened,
        pytest.raises(EndpointError, match=r"can not be reached.*Check sampler\.base_url and the network"),
    ):
        opened.sample(PROMPTS[:1])


def test_a_missing_key_is_told_before_anything_is_sent(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    config = endpoint("https://api.openai.com/v1", tiny)
    with pytest.raises(EndpointError, match=f"no API key: export {KEY_ENV}="), open_sampler(config, tiny):
        raise AssertionError("opened without a key")


def test_the_budget_stops_the_run_and_finished_shards_are_kept(
    server: str, tiny: Subject, key: None, tmp_path: Path
) -> None:
    """Eight tokens at a dollar each: the third request could go over twenty dollars."""
    with gateway(server) as front:
        prices = {"usd_per_million_output": 1e6, "workers": 1}
        config = endpoint(front.url, tiny, budget_usd=20.0, **prices)
        with pytest.raises(BudgetError, match=r"the budget of 20 USD is used up.*16.0000 spent"):
            sample_shards(lambda: open_sampler(config, tiny), PROMPTS, 1, tmp_path)
        assert front.asked == 2
        assert [row.index for path in sorted(tmp_path.glob("rows-*")) for row in read_jsonl(path, Row)] == [0, 1]
        more = endpoint(front.url, tiny, budget_usd=32.0, **prices)
        assert sample_shards(lambda: open_sampler(more, tiny), PROMPTS, 1, tmp_path)["shards_reused"] == 2
        assert front.asked == 6


def test_many_workers_never_spend_over_the_budget(server: str, tiny: Subject, key: None) -> None:
    with gateway(server) as front:
        config = endpoint(front.url, tiny, budget_usd=20.0, usd_per_million_output=1e6, workers=6)
        with open_sampler(config, tiny) as opened, pytest.raises(BudgetError):
            opened.sample(PROMPTS)
        assert front.asked <= 2


@given(st.integers(1, 600), st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_the_rate_limit_keeps_starts_apart_and_wastes_no_time(per_minute: int, pauses: list[float]) -> None:
    """A clock we turn ourselves: starts are an interval apart, and a caller who comes late does not wait."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    limit, starts = RateLimit(per_minute, clock=lambda: now[0], sleep=sleep), list[float]()
    for pause in pauses:
        now[0] += pause
        came = now[0]
        limit.wait()
        starts.append(now[0])
        earliest = starts[-2] + 60 / per_minute if len(starts) > 1 else came
        assert now[0] == pytest.approx(max(came, earliest))


# --------------------------------------------------------------------------- through the script


def test_generate_writes_rows_and_never_the_key(
    server: str, counting: Subject, key: None, run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole stage through the endpoint, then one that fails with an error that holds the key."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    weights = ["model=hub", f"model.source.name={counting.checkpoint}", "model.dtype=float32", "reference_tuning=off"]
    sizes = ["domain.prompts=6", "filter.rows=6", "sampler.decoding.max_tokens=8", "sampler.shard_size=4"]
    places = [
        f"store={tmp_path / 'runs'}",
        f"hydra.run.dir={tmp_path / 'logs'}",
        "tracking=offline",
        "hydra.verbose=true",
    ]
    said = []
    for front_tells in (False, True):
        with gateway(server, tells_key=front_tells) as front:
            api = ["sampler=api", f"sampler.base_url={front.url}", f"sampler.model={counting.checkpoint}"]
            more = ["teacher=control", f"sampler.key_env={KEY_ENV}", "scale=gpu", "device=cpu"]
            done = run_script("generate.py", *weights, *sizes, *places, *api, *more)
        assert done.returncode == (1 if front_tells else 0), done.stderr[-3000:]
        said.append(done.stdout + done.stderr)
    assert "Bearer ***" in said[1] and "Traceback" not in said[1]
    assert KEY not in "".join(said)
    rows = [row for path in sorted(tmp_path.rglob("rows-*.jsonl")) for row in read_jsonl(path, Row)]
    assert [row.index for row in rows] == list(range(6))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "failure.json" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
