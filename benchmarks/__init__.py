"""Measurements with real processes. Run one with `.venv/bin/python -m benchmarks.<name> --help`."""
