"""What people can do about a version that does not answer: sentences that work when copied into a shell."""

from __future__ import annotations

import shlex


def state_cure(model: str, version: int, state: str) -> str:
    """Says what makes a version READY, by the state that it is in; empty for a state that nobody knows a cure for.

    Args:
        model: Model name; a stranger's may be anything.
        version: Version number.
        state: As in `fitserve.control.v1.State`, without its prefix.
    """
    name = shlex.quote(model)
    if state in ("PENDING", "LOADING"):
        return f"wait for it with: fitserve-client wait {name} --model-version {version}"
    if state in ("UNLOADED", "UNLOADING"):
        return (
            f"keep it loaded with a label: fitserve-client label {name} LABEL {version}; or, where the whole model was "
            f"unloaded: fitserve-client load {name}"
        )
    if state == "FAILED":
        return f"correct its files, or try again with: fitserve-client load {name}"
    return ""


def with_cure(text: str, cure: str) -> str:
    """Joins what is wrong and its cure, where there is one."""
    return f"{text}; {cure}" if cure else text
