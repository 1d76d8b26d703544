"""Proves a graph against torch: sampling, reference answers, error figures, acceptance.

Start with `verify.verify`.
"""
