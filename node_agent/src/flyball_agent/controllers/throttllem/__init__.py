"""throttLL'eM (arXiv 2408.05235, HPCA 2025): the least clock at which every request is projected to end in time."""
