"""Kernels: whole sequences in compiled loops, each with its torch reference's name and signature.

`cpu` is what backend "numba" runs: autograd functions over the loops of `loops`, whose threads
`openmp` borrows from torch. Imported when `spiking.backend` first needs them, never before.
"""
