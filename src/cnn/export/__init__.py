"""Models that travel: to and from PyTorch and ONNX, from scikit-learn, to C. One format a file; `cnn` lends the names.

No framework is imported before one of the functions needs it.
"""
