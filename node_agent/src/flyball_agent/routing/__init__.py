"""Rules that choose an engine for a request: pure functions of what is known of the engines."""
