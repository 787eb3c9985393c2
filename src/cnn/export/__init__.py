"""Export and import of models: PyTorch and ONNX (both ways), scikit-learn (import), C (export). One module per format.

A framework is imported only when a function needs it.
"""
