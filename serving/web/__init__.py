"""HTTP: routes, middleware, connections, requests, problems, access."""
