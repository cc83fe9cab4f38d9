"""What the API server would say of an EnergyPolicy, without an API server."""
