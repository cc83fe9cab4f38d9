"""What becomes of objectives and energy when what a controller relies on fails: every controller, fault by fault."""
