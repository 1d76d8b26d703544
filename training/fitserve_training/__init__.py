"""Training half of fitserve: recipes that fit, run directories that can be exported, resumed and reproduced.

Importing this package is cheap: torch is imported by the modules that need it, never from here.
"""
