"""`flyball-sim node`: be the kubelet of one Node against a real API server, with host processes as containers."""
