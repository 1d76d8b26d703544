"""The line that a server says once it is ready."""

from __future__ import annotations

from fitserve_service.listening import address_text
from fitserve_service.registry import Registry
from fitserve_service.settings import ServerSettings

_SHOWN_MODELS = 5


def ready_text(settings: ServerSettings, port: int, metrics_port: int | None, registry: Registry) -> str:
    """Says in a line where the server listens and what it serves; or what to do where there is nothing to serve.

    Names and reasons come from files as they are; whoever prints the line makes them `printable`.
    """
    workers = f" with {settings.workers} workers" if settings.workers > 1 else ""
    place = f"fitserve is ready on {address_text(settings.host, port)}{workers}"
    if metrics_port is not None:
        page = f"http://{settings.metrics_host}:{metrics_port}/"
        place += f", status page on {page}, metrics on {page}metrics"
    models = registry.snapshot()
    if not models:
        return (
            f"{place}. The repository '{settings.repository}' holds no model yet: export one into it with "
            f"`fitserve-export RUN_DIR --repository {settings.repository}`, or copy a file to "
            f"{settings.repository}/NAME/1/model.onnx; it is served as soon as it is there."
            + "".join(f" {note}." for note in registry.repository.texts)
        )
    shown = [_model_text(registry, model.name) for model in models[:_SHOWN_MODELS]]
    more = f" and {len(models) - _SHOWN_MODELS} more models" if len(models) > _SHOWN_MODELS else ""
    return f"{place}: {'; '.join(shown)}{more}"


def _model_text(registry: Registry, name: str) -> str:
    versions = registry.model(name).versions
    served = [version.served for version in versions if version.served is not None]
    if not served:
        return f"{name} (not loaded: {next((version.reason for version in versions if version.reason), 'no version')})"
    numbers = ", ".join(str(version.version) for version in served)
    variant = served[-1].config.variant
    return f"{name} version {numbers} on {served[-1].provider}" + (f" ({variant})" if variant != "fp32" else "")
