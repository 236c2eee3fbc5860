"""What `stats-pipeline demo` shows: a made-up club and the code that plays it.

Nothing outside the demo, the tests and the benchmarks imports from here; the pipeline itself works on whatever rows
the database holds.
"""
