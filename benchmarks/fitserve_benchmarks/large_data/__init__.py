"""Training on data larger than memory, tried out: made data, a memory limit, and what a run took; begin at `drill`."""
