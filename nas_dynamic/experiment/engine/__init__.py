"""Where the independent pieces of a command are computed: here, or over the machines of a cluster.

A command gives its pieces to an `Engine`, and does not know which one that is.
"""

from __future__ import annotations

from nas_dynamic.experiment.engine.local import Engine, LocalEngine, Place, Work, open_engine

__all__ = ["Engine", "LocalEngine", "Place", "Work", "open_engine"]
