"""One suite for all kernel sets: every rule of `unspool.kernels.contract`, over the same cases."""
