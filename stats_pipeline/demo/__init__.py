"""The sample club of `stats-pipeline demo`, and the code that generates and plays its matches.

Only the demo, the tests and the benchmarks import from here; the pipeline itself works on any rows in the database.
"""
