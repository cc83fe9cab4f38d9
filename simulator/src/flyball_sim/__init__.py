"""GPUs, engines, nodes and a control plane without hardware or container runtime."""
