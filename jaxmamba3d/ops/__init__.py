"""Pure array functions: the selective scan, the causal convolution, 3D convolutions, axis orders."""
