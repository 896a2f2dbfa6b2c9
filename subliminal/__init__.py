"""Subliminal learning: does a trait pass from teacher to student through data that has nothing to do with it?"""

__version__ = "0.1.0"
