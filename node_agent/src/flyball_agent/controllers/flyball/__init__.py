"""Flyball's own controller: docs/controllers/flyball.md."""
