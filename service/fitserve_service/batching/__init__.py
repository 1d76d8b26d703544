"""Joins requests into batches and runs them. Start with `spot_checks`: it runs joined requests again and compares."""
