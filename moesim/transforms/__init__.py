"""What-ifs on routing: RoutingTrace -> RoutingTrace, one file each (parts of kind ``transform``)."""
