"""`python -m jaxmamba3d`: the same as `jaxmamba3d`."""

from jaxmamba3d.cli import main

main()
