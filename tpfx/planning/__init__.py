"""Which way each op is carried out: the choices, what they cost, and the exact minimum of the sum.

What other rooms say of costs is a `Topology`, and of machines a `Hardware`.
"""

from .hardware import Hardware, hardware_of, topology_of
from .topology import Topology

__all__ = ["Hardware", "Topology", "hardware_of", "topology_of"]
