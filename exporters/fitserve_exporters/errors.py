"""What stops an export; the command line maps each kind to an exit code."""

from __future__ import annotations


class ExportError(Exception):
    """The request cannot be carried out as it stands: exit code 2, nothing published."""


class NotVerifiedError(Exception):
    """ONNX Runtime's answers are not torch's: exit code 1, nothing published; the message holds the figures."""


class VariantError(Exception):
    """A variant that cannot be made or published; the version goes on without it."""
