"""The seam between dynamic training and a framework, and what hosts of a kind share."""

from nas_dynamic.evaluation.supernet import Supernet
from nas_dynamic.host.options import Options, takes_options
from nas_dynamic.host.seam import Host, attach, build

__all__ = ["Host", "Options", "Supernet", "attach", "build", "takes_options"]
