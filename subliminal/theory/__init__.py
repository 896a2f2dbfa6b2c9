"""The theorem (arXiv 2507.14805): checked in float64, followed along training runs, and used as a predictor."""
