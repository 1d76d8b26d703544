"""Turns a version's folder into a served version. Start with `joining_trial`: it decides which requests are joined."""
