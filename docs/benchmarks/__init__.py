"""Scripts that print the tables of ``docs/benchmarks.md``: ``python -m docs.benchmarks.NAME``, from the root."""
