"""Which models join: a labelled corpus, real files, the table of what joins and why not, and the 32-caller check.

Start at `labelled.py` (what a labelled model is), then `corpus.py` (all of them) and `table.py` (proof, trial, table).
"""
