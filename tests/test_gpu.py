"""Who holds a GPU's memory, over a table of cards: free memory is faked, what is decided is not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from subliminal import gpu
from subliminal.gpu import GIB

SEVEN = round(15.2e9)  # bytes of Qwen2.5-7B in bfloat16


class Card:
    """A GPU whose memory is held by an engine, a model, and `late`: what an ended process gives back look by look."""

    def __init__(self, total: float) -> None:
        self.total, self.engine, self.model, self.late = total * GIB, 0.0, 0.0, 0.0
        self.looks = 0

    def memory(self) -> tuple[int, int]:
        self.looks += 1
        self.late = max(0.0, self.late - 10 * GIB)
        return round(self.total - self.engine - self.model - self.late), round(self.total)

    def shut_down(self) -> None:
        self.late, self.engine = self.engine, 0.0

    def starts(self, share: float) -> None:
        self.engine = share * self.total
        core = SimpleNamespace(shutdown=self.shut_down)
        gpu.ENGINES["engine"] = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))


@pytest.fixture
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    faked = Card(request.param)
    monkeypatch.setattr(gpu, "memory", faked.memory)
    monkeypatch.setattr(gpu, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "MODELS", {})
    monkeypatch.setattr(gpu, "ENGINES", {})
    monkeypatch.setattr(gpu, "unload", lambda: (gpu.MODELS.clear(), setattr(faked, "model", 0.0)))
    yield faked


@pytest.mark.parametrize(
    ("card", "share"), [(24, 0.9), (40, 0.9), (48, 0.63), (80, 0.78), (141, 0.88)], indirect=["card"]
)
def test_an_engine_leaves_room_for_the_model_where_both_fit(card: Card, share: float) -> None:
    given = gpu.room_for_engine(SEVEN, 0.9)
    assert given == pytest.approx(share, abs=0.01)
    card.starts(given)
    gpu.room_for_model(SEVEN)
    assert bool(gpu.ENGINES) == (given < 0.9), "the engine stays where it left room"
    free, _ = card.memory()
    assert free > SEVEN, "and the model fits in any case"


@pytest.mark.parametrize(("card", "stays"), [(24, False), (40, False), (48, True), (80, True)], indirect=["card"])
def test_a_loaded_model_stays_beside_an_engine_that_has_enough(card: Card, stays: bool) -> None:
    gpu.MODELS["base"], card.model = object(), SEVEN
    share = gpu.room_for_engine(SEVEN, 0.9)
    assert bool(gpu.MODELS) == stays
    free, total = card.memory()
    assert share * total <= free, "vLLM refuses to start where less than its share is free"


@pytest.mark.parametrize("card", [80], indirect=True)
def test_a_training_has_the_whole_card_and_waits_for_an_ended_engine(card: Card) -> None:
    card.starts(0.7)
    gpu.MODELS["base"], card.model = object(), SEVEN
    gpu.room_for_training("cuda")
    assert not gpu.ENGINES and not gpu.MODELS
    assert card.memory()[0] >= 0.9 * card.total and card.looks > 3


@pytest.mark.parametrize("card", [80], indirect=True)
def test_memory_that_another_process_holds_is_named_and_not_waited_for_forever(
    card: Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "WAIT_SECONDS", 0.0)
    card.model = 50 * GIB
    gpu.wait_for(60 * GIB)
    assert "30.0 GiB of the GPU are free, not 60.0: another process holds the rest" in capsys.readouterr().err


@pytest.mark.parametrize("card", [80], indirect=True)
def test_on_a_cpu_an_engine_goes_on_while_a_student_trains(card: Card) -> None:
    card.starts(0.5)
    gpu.room_for_training("cpu")
    assert gpu.ENGINES
