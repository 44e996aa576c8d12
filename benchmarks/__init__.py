"""How fast this package is beside other masked autoencoders, measured on the same machine in one run: make bench."""
