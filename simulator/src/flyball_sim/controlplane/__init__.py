"""A real Kubernetes control plane on this machine: build it, cache it, run it, end it."""
