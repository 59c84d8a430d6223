"""Pure array functions: the selective scan, the causal convolution, 3D convolutions, axis orders.

Each is to be imported from its module: `from jaxmamba3d.ops.conv3d import conv3d`.
"""
