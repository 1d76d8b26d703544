"""Whether rows of different callers' requests may share a run: the proof from the graph, the trial on rows that differ
as much as rows can, and the one rule by which two answers are compared. Start with `proof`, then `trial` and `rows`.
"""
