"""The paper's MNIST experiment: digits learned from noise through auxiliary logits (arXiv 2507.14805)."""
