"""Which shares of a model's requests go to the canary and to the shadow: `<model>/traffic.json`, and the draw.

A request with a routing key is assigned by the key's hash: the same key always lands at the same place of 0..1, so a
caller stays with the canary while its share grows. The canary and the shadow draw by different hashes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from fitserve_contract.files import replace_durably
from fitserve_contract.repository import MAX_TEXT_BYTES, check_model_name
from fitserve_contract.repository_view import Root, read_settled, root_of

TRAFFIC_FILE: Final = "traffic.json"

ROUTING_KEY: Final = "fitserve-routing-key"
"""Metadata key whose value assigns a request."""


class TrafficError(ValueError):
    """A traffic that cannot be taken; the message names the key, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The shares of one model.

    Args:
        canary_share: Share of the requests that name neither version nor label that the canary answers, 0..1.
        shadow_share: Share of the answered ones that the shadow runs too, 0..1.

    Raises:
        TrafficError: a share outside 0..1.
    """

    canary_share: float = 0.0
    shadow_share: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 1:
                raise TrafficError(f"{name}: expected a share of 0..1, got {repr(value)[:40]}")


NO_TRAFFIC: Final = Traffic()


def read_traffic(root: Root, model: str) -> Traffic:
    """Reads a model's traffic; none where it has no traffic file.

    Raises:
        TrafficError: no JSON, an unknown key, or a share outside 0..1.
    """
    try:
        name = f"{check_model_name(model)}/{TRAFFIC_FILE}"
        content = read_settled(root, lambda view: view.read(name, max_bytes=MAX_TEXT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return NO_TRAFFIC
    try:
        return _traffic_of(json.loads(content))
    except TrafficError as error:
        raise TrafficError(f"{model}/{TRAFFIC_FILE}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise TrafficError(f"{model}/{TRAFFIC_FILE}: expected JSON, got {str(error)[:200]}") from None


def write_traffic(root: Root, model: str, traffic: Traffic) -> None:
    """Replaces a model's traffic, atomically and durably.

    Raises:
        UnsafeFileError: the model's folder or the file is a link: nothing is written through one.
        OSError: the folder cannot be written.
    """
    content = json.dumps(asdict(traffic), indent=2) + "\n"
    replace_durably(root_of(root).path / check_model_name(model) / TRAFFIC_FILE, content.encode())


def routing_key(metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
    """Finds the routing key that a request carries; None where it has none."""
    for name, value in metadata:
        if name == ROUTING_KEY:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return None


class Draw:
    """Decides which requests belong to a share. Not thread-safe.

    Args:
        seed: Of the requests without a key; None: a new one each time.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def is_in(self, share: float, purpose: str, model: str, key: str | None) -> bool:
        """Decides for one request.

        Args:
            share: 0..1.
            purpose: What for; each purpose draws for itself.
            model: Model name.
            key: Routing key; None: at random.
        """
        if share <= 0:
            return False
        return (self._random.random() if key is None else place_of(purpose, model, key)) < share


def place_of(purpose: str, model: str, key: str) -> float:
    """Gives a key's place in [0, 1): uniform over keys, independent between purposes and models."""
    digest = hashlib.blake2b(f"{purpose}\0{model}\0{key}".encode(errors="replace"), digest_size=8).digest()
    return math.ldexp(int.from_bytes(digest) >> 11, -53)


def _traffic_of(document: Any) -> Traffic:
    known = [entry.name for entry in fields(Traffic)]
    if not isinstance(document, dict):
        raise TrafficError(f"expected an object with {', '.join(known)}, got {type(document).__name__}")
    for key in document:
        if key not in known:
            raise TrafficError(f"expected one of {', '.join(known)}, got an unknown key '{key[:64]}'")
    return Traffic(**document)
