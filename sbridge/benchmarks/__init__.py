"""Measurements of accuracy, time and memory, each runnable with ``python -m``."""
