"""One GPU of 80 GB with the models of the paper: `python -m benchmarks.card`."""
