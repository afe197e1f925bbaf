"""Speed and memory of the operators beside what they replace: `python -m benchmarks`, or `pytest benchmarks`."""
