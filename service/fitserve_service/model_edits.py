"""Edits of models' folders that callers asked for, of labels and traffic, each held back until its version is READY."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fitserve_service.aspirations import Aspirations
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.known_model import not_ready, unknown_model
from fitserve_service.registry import Registry
from fitserve_service.status import incident
from fitserve_service.version_policy import State

OnDone: TypeAlias = Callable[[ServiceError | None], None]
"""Told once what came of it: None, or why not."""


@dataclass(frozen=True, slots=True)
class ModelEdit:
    """A change to a model's folder.

    Args:
        model: Model name.
        apply: Makes the change; raises ServiceError where it cannot, and then has changed nothing.
        on_done: Called on the thread that makes it, once it can be seen or cannot be made.
        version: A version that must be READY before; 0: none.
    """

    model: str
    apply: Callable[[], None]
    on_done: OnDone
    version: int = 0


class ModelEdits:
    """The edits that wait, in order. Used on the reconciler's thread alone.

    Args:
        registry: Which versions are READY.
        aspirations: Which models there are.
        show: Makes an edit that was made seen, before its caller is answered.
    """

    def __init__(self, registry: Registry, aspirations: Aspirations, show: Callable[[str], None]) -> None:
        self._registry = registry
        self._aspirations = aspirations
        self._show = show
        self._waiting: list[ModelEdit] = []

    def add(self, edit: ModelEdit) -> None:
        """Lets an edit wait for its turn."""
        self._waiting.append(edit)

    def versions(self, model: str) -> list[int]:
        """Gives the versions of a model that edits wait for."""
        return [edit.version for edit in self._waiting if edit.model == model and edit.version]

    def make_due(self) -> None:
        """Makes the edits that can be made now, and answers those that never can."""
        waiting, self._waiting = self._waiting, []
        for edit in waiting:
            try:
                is_due = self._is_due(edit)
                if is_due:
                    edit.apply()
            except ServiceError as error:
                edit.on_done(error)
                continue
            except Exception as error:
                edit.on_done(incident(f"an edit of model '{edit.model}'", error))
                continue
            if is_due:
                self._show(edit.model)
                edit.on_done(None)
            else:
                self._waiting.append(edit)

    def _is_due(self, edit: ModelEdit) -> bool:
        """Tells whether an edit can be made now.

        Raises:
            ServiceError: it never can: MODEL_NOT_FOUND, VERSION_NOT_FOUND, or MODEL_FAILED with why. Or, while the
                repository or the model's folder is away, REPOSITORY_READ_ONLY: what is in its place has no labels.
        """
        model, version = edit.model, edit.version
        if model not in self._aspirations.found():
            raise unknown_model(model)
        if away := self._aspirations.absence_of(model):
            text = f"model '{model}': expected to read and write its folder, got: {away}"
            raise ServiceError(Reason.REPOSITORY_READ_ONLY, text, model=model)
        if version == 0 or self._aspirations.is_unloaded(model):
            return True
        # As it is in this process: other workers load it because of the edit.
        state = self._registry.states(model).get(version)
        if state is None or state is State.FAILED:
            versions = self._registry.model(model).versions
            raise not_ready(model, version, next((each for each in versions if each.version == version), None))
        return state is State.READY
