"""Kernels: whole sequences in compiled loops, each with its torch reference's name and signature.

`cpu` is backend "numba": loops that numba compiles, run on torch's own threads. `cuda` is backend
"cupy": .cu files that CuPy compiles. In each, `sequences` is the entry module, whose functions
stand in for the references; `functions` has the same on prepared tensors, with gradients for
autograd. `calls` holds what both share. `cpu.chain` is no backend but the whole compiled training
step. `spiking.backend` imports an entry module when it is first needed.
"""
