"""Speed and memory against what a user would pick instead, on one machine; `python -m benchmarks --help`."""
