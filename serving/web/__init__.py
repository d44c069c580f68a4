"""HTTP: routes, middleware, requests, problems, access."""
