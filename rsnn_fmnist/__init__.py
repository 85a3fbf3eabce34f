"""Spiking neural networks that read FashionMNIST column by column."""

__version__ = "0.1.0"
