"""Figures, tables and the report: computed from manifests and their files alone, without any model."""
