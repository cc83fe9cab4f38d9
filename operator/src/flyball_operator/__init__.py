"""The cluster brain: from policies to one plan per node."""
