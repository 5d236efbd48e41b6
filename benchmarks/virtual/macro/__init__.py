"""Many instances behind a router in the simulator, against other routers and disaggregation."""
