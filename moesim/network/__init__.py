"""What travels between devices, how long it takes, and which links it loads.

A topology (a part in ``topologies/``) says which links exist and which paths a pair of hosts has; a balancing part says
how flows spread over the paths. ``Network`` joins both with the scale-up switches of the nodes and gives the closed
form of collectives that have their links to themselves; ``run_flows`` runs any flows, sharing links max-min fairly.

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=4, spines=4, hosts_per_leaf=8, link="400 Gbit/s")
>>> fabric.n_hosts, fabric.oversubscription, len(fabric.links())
(32, 2.0, 96)
"""

from moesim.network.collective import Collective, Constants
from moesim.network.flows import run_flows
from moesim.network.network import Network
from moesim.network.stages import Messages
from moesim.network.topologies.leaf_spine import LeafSpine
from moesim.network.topologies.switch import Switch
from moesim.network.wire import Packet, wire_bytes

__all__ = ["Collective", "Constants", "LeafSpine", "Messages", "Network", "Packet", "Switch", "run_flows", "wire_bytes"]
