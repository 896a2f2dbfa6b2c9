"""Train a student on filtered rows (or a teacher or reference with role=teacher, role=reference)."""

import hydra
from omegaconf import DictConfig, OmegaConf

from subliminal.launch import run_script, run_stage


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose one experiment and run its train stage."""
    run_stage("train", OmegaConf.to_container(config, resolve=True))


if __name__ == "__main__":
    run_script(main)
