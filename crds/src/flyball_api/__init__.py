"""The API of Flyball: pydantic models, generated CRDs, and the client that both processes share."""
