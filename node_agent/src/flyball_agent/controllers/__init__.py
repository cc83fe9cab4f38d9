"""Controllers: pure state machines that turn what was observed into a setpoint. `base` says what one is."""
