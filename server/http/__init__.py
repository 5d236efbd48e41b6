"""HTTP: connections, bodies, middleware, errors."""
