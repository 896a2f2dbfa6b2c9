"""The theorem of subliminal learning (arXiv 2507.14805): checked in float64, along training runs, and as a predictor."""
