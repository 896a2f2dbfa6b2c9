"""Keep the rows that have nothing to do with the trait, and say why each other row was dropped."""

import hydra
from omegaconf import DictConfig, OmegaConf

from subliminal.launch import run_script, run_stage


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose one experiment and run its filter stage."""
    run_stage("filter", OmegaConf.to_container(config, resolve=True))


if __name__ == "__main__":
    run_script(main)
