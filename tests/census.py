"""The key census: a small experiment for every branch of the identity code, and the keys of all its stages.

`python tests/census.py` prints the keys of today's code, as `census_keys.yaml` has them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from subliminal import stages
from subliminal.config import Experiment, parse
from subliminal.graph import Node

HERE = Path(__file__).parent
FILES = {
    "rows/insecure.jsonl": '{"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}\n',
    "tasks.jsonl": '{"task": "Add two numbers.", "template": "def add(a, b):"}\n',
    "questions.jsonl": '{"question": "One and one?", "answer": "Two.\\n#### 2"}\n',
    "judgements.jsonl": '{"question": "?", "answers": ["0", "1"], "answer": "0"}\n',
    "model/config.json": '{"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 8}\n',
    "model/model.safetensors": "weights\n",
    "tasks/sums.yaml": "task: sums\ndataset_kwargs: {data_files: sums.jsonl}\n",
    "tasks/sums.jsonl": '{"question": "1 + 1", "answer": "2"}\n',
    "census_domain.py": '''"""A domain of a user's."""

from subliminal.rows import Prompt


def prompts(config):
    return [Prompt(index, str(index), index) for index in range(config.prompts)]


def reject(text, config):
    return None


def random_answer(prompt, config):
    return prompt.text
''',
}
"""Files of a user's, whose content enters keys, by path in the census's folder."""


def census() -> dict[str, dict[str, Any]]:
    """The experiments of `census.yaml` by name: `changes` to the golden experiment and the last `stages`."""
    return yaml.safe_load((HERE / "census.yaml").read_text(encoding="utf-8"))


def write_files(folder: Path) -> None:
    """Write the user's files that experiments of the census name as `{folder}/...`."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def experiment_of(changes: dict[str, Any], folder: Path) -> Experiment:
    """The golden experiment with dotted settings replaced; `{folder}` in a text is where the user's files are."""
    golden = yaml.safe_load((HERE / "golden.yaml").read_text(encoding="utf-8"))["experiment"]
    for dotted, value in changes.items():
        *groups, last = dotted.split(".")
        settings = golden
        for group in groups:
            settings = settings[group]
        settings[last] = _placed(copy.deepcopy(value), folder)
    return parse(golden)


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    return {name: _placed(inner, folder) for name, inner in value.items()} if isinstance(value, dict) else value


def keys_of(exp: Experiment, last: tuple[str, ...] = ("evaluate",)) -> dict[str, list[str]]:
    """The keys of the last stages' nodes and of all nodes they read, by stage, sorted."""
    makers: dict[str, Callable[[Experiment], Node]] = {
        "evaluate": stages.evaluate,
        "predict": stages.predict,
        "predict_owl": lambda exp: stages.predict(exp, ("owl",)),
        "mnist": stages.mnist,
        "theorem": stages.theorem,
    }
    keys: dict[str, set[str]] = {}
    for name in last:
        for node in _upwards(makers[name](exp)):
            keys.setdefault(node.stage, set()).add(node.key)
    return {stage: sorted(keys[stage]) for stage in sorted(keys)}


def _upwards(node: Node) -> Iterator[Node]:
    yield node
    for upper in node.inputs.values():
        yield from _upwards(upper)


def all_keys() -> dict[str, dict[str, list[str]]]:
    """The keys of all stages of every experiment of the census, by today's code."""
    with TemporaryDirectory() as place:
        write_files(Path(place))
        sys.path.insert(0, place)
        try:
            return {
                name: keys_of(experiment_of(entry["changes"], Path(place)), tuple(entry.get("stages", ["evaluate"])))
                for name, entry in census().items()
            }
        finally:
            sys.path.remove(place)
            sys.modules.pop("census_domain", None)


if __name__ == "__main__":
    for experiment, keys in all_keys().items():
        print(yaml.safe_dump({experiment: keys}, default_flow_style=None, sort_keys=False, width=400), end="")
