"""What travels between devices, how long it takes, and which links it loads.

A topology (a part in ``topologies/``) says which links exist and which of them a pair of hosts uses; a
balancing part says how a pair's bytes spread over the spines. ``Network`` joins both with the scale-up
switches of the nodes and gives the closed form for collectives that have their links to themselves; ``run_flows`` runs
any flows on a fabric, sharing links max-min fairly.

>>> from moesim.network import LeafSpine
>>> fabric = LeafSpine(leaves=4, spines=4, hosts_per_leaf=8, link="400 Gbit/s")
>>> fabric.n_hosts, fabric.oversubscription, len(fabric.links())
(32, 2.0, 96)
"""

from moesim.network.collective import Collective
from moesim.network.flows import run_flows
from moesim.network.network import Network
from moesim.network.topologies.leaf_spine import LeafSpine
from moesim.network.topologies.switch import Switch

__all__ = ["Collective", "LeafSpine", "Network", "Switch", "run_flows"]
