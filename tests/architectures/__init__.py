"""Architectures of libraries and hand-made ones: each is published, served and compared with torch, or refused.

Start with `table.py`, which lists them; `examine.py` says what is done with each.
"""
