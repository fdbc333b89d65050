"""Predict without torch: tokenizers, ONNX Runtime and numpy, for classification and question answering.

Answers are those of Optimum's pipeline around the same files, digit for digit; tests compare them. Importing Optimum
costs seconds and half a gigabyte, which a server on two cores has better uses for.
"""
