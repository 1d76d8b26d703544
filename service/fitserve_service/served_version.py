"""A version that is loaded: its session, what it says of itself, and what is measured of it; and who makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from fitserve_contract.joinability.proof import joining_text
from fitserve_contract.manifest import Manifest
from fitserve_contract.repository import VersionPath
from fitserve_contract.tasks import Task
from fitserve_service.costs import CostTable
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.proof import HeldOut, Replay
from fitserve_service.session import Session
from fitserve_service.signature import Signature
from fitserve_service.statistics import VersionStatistics


@dataclass(slots=True, eq=False, weakref_slot=True)
class ServedVersion:
    """A version that is loaded; immutable but for what is measured of it, and for `stop_joining`.

    Args:
        model: Model name.
        version: Version number.
        session: The runtime's session.
        signature: Inputs and outputs.
        config: How it is served, overrides included.
        comments: Where values of `config` come from, by key.
        manifest: What it says of itself; None for a foreign file.
        manifest_json: The manifest's bytes; empty for a foreign file.
        is_verified: Its checksums were there and hold, and the replay of its probe held.
        files: What callers may ask for, file name to content.
        load_ms: From LOADING to READY.
        replay: How near its answers came to its certificate's; None where it has none.
        held_out: Labelled examples that it carries; None where it has none.
        joining: Whether requests are joined, and why, for people.
        content_digest: Of the files that its session was made from; see `loading.coupled_contents`.
        summed_digest: Of what its checksums say of all its files; empty where it has none.
        file_sums: What was read of its folder to load it; see `loading.version_reader`.
        spot_check_count: Joined requests that were run again and compared.
        spot_mismatch_count: Of these, those whose answers differed.
    """

    model: str
    version: int
    session: Session
    signature: Signature
    config: ModelConfig
    comments: Mapping[str, str]
    manifest: Manifest | None
    manifest_json: bytes
    is_verified: bool
    files: Mapping[str, bytes] = field(default_factory=dict)
    load_ms: float = 0.0
    costs: CostTable = field(default_factory=CostTable)
    statistics: VersionStatistics = field(default_factory=VersionStatistics)
    replay: Replay | None = None
    held_out: HeldOut | None = None
    joining: str = ""
    content_digest: str = ""
    summed_digest: str = ""
    file_sums: Mapping[str, str] = field(default_factory=dict)
    spot_check_count: int = 0
    spot_mismatch_count: int = 0

    @property
    def instance(self) -> str:
        """What workers know it by: its version's content, whichever of its variants serves here."""
        return self.summed_digest or self.content_digest

    def queue_capacity(self) -> int:
        """Returns how many examples may wait, as far as its bounds in examples and in time tell."""
        config, least_s = self.config, self.costs.least_s
        if not (config.max_queue_ms and least_s):
            return config.max_queued_examples
        by_time = int(config.max_queue_ms / 1e3 / least_s)
        return min(config.max_queued_examples, max(by_time, config.least_queued_requests))

    def stop_joining(self, problem: str) -> None:
        """Has requests run alone from now on; on the loop thread.

        Args:
            problem: Why, for people.
        """
        self.signature = replace(self.signature, has_batch_axis=False)
        self.config = replace(self.config, joinable=False, max_batch_size=0, batch_size_buckets=())
        self.comments = {**self.comments, "joinable": problem}
        self.joining = joining_text(problem)

    @property
    def effective_toml(self) -> str:
        """`config` as TOML, with where each value comes from."""
        return self.config.to_toml(self.comments)

    @property
    def task(self) -> Task | None:
        """What its outputs mean, by its manifest, else by `model.toml`; None where nothing can be scored."""
        if self.manifest is not None and self.manifest.task is not None:
            return self.manifest.task
        return self.config.task_of([spec.name for spec in self.signature.outputs])

    @property
    def provider(self) -> str:
        """Execution provider that runs it."""
        return self.session.provider


class Lease(Protocol):
    """Keeps a version loaded until it is released."""

    served: ServedVersion

    def release(self) -> None:
        """Gives the version back; a second call does nothing."""
        ...


class VersionLoader(Protocol):
    """Makes served versions; see `loader.Loader`."""

    def load(self, path: VersionPath, overrides: Overrides) -> ServedVersion:
        """Loads one version; raises LoadError."""
        ...
