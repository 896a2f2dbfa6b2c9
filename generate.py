"""Let the teacher write its data: prompts of the domain, completions at temperature 1."""

import hydra
from omegaconf import DictConfig, OmegaConf

from subliminal.launch import run_script, run_stage


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose one experiment and run its generate stage."""
    run_stage("generate", OmegaConf.to_container(config, resolve=True))


if __name__ == "__main__":
    run_script(main)
