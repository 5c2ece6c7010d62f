"""Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another."""

__version__ = "0.1.0"
