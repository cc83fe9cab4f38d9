"""How many GPUs an engine should have, as pure rules: executed by the simulator now, by the operator later."""
