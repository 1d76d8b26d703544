"""Data of the user as rows of arrays, in memory or in a memory-mapped file that is used again; begin at `rows`."""
