"""Files and batches of the router: kept by the router, answered by its instances."""
