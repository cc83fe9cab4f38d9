"""PALS (arXiv 2605.21427): power cap and batch, chosen together from an offline model, under a power budget."""
