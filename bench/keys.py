"""Every key of every experiment at every scale, a line each, to compare two versions of the code.

For the same device and precision on all machines: CPU, float32. Keys of sweeps' arms are those their steps make.
"""

from __future__ import annotations

from subliminal.composition import CONF
from subliminal.config import ConfigError
from subliminal.sweep import plan

SCALES = ("cpu", "gpu", "paper")
FIXED = ("device=cpu", "model.dtype=float32", "mnist.dtype=float32")


def main() -> None:
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        for scale in SCALES:
            try:
                planned = plan([f"experiment={path.stem}", f"scale={scale}", *FIXED])
            except ConfigError as error:
                print(f"{path.stem} {scale} {str(error).splitlines()[0]}")
                continue
            lines = {f"{path.stem} {scale} {node.stage} {node.key}" for step in planned.steps for node in step.nodes}
            print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
