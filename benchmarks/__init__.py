"""Speed and memory of the operators against the code they replace: `python -m benchmarks`, or `pytest benchmarks`."""
