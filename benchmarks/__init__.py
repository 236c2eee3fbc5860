"""Measurements with real processes. Run one with `.venv/bin/python benchmarks/<name>.py --help`."""
