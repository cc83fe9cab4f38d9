"""What a step of an engine costs by GPU, model, precision and tensor parallelism, and what follows from it."""
