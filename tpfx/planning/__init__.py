"""Which way each op is carried out: the choices, what they cost, and the exact minimum of the sum.

What other rooms say of costs is a `Topology`.
"""

from .topology import Topology, topology_of

__all__ = ["Topology", "topology_of"]
