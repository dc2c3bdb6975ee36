"""timm: supernets from timm's model builders, trained in timm's own loop."""

from __future__ import annotations

try:
    import timm  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nas_dynamic.adapters.timm needs timm: pip install 'nas-dynamic[timm]' "
        f"(missing or broken: {error})"
    ) from error

__all__: list[str] = []
