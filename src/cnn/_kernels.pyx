"""The compiled core of cnn, private to it. The Python classes beside this file are its only callers.

Table of contents: every part below is included into this one translation unit, so that what is inline is inlined. The
build compiles it once for each instruction set and dtype (setup.py); the vector type is all that differs, and
kernels/simd.h is the only file that knows it. Compiler directives stand in setup.py.

How a call travels, `model.train_step(x, y)` for one:

    Sequential.train_step    Python: hands over x, y and the optimiser's hyper-parameters
    Program.train_step       checks the arrays (arrays.pxi), takes their pointers, lets go of the GIL if that pays
    run_pass                 shares the work among threads: chunks of rows, then pieces of the weights (program.pxi)
    walk_forward, ...        the ops in order; the loss; the ops in reverse
    forward_linear, ...      fills in a Product: operands, strides, what to do with a finished tile
    product                  cuts C into panels and tiles, packs B where that pays (product.pxi)
    tiles                    multiply-adds in registers, then bias and activation, derivative or optimiser's step
"""

include "kernels/types.pxi"         # the vector type and its operations (simd.h)
include "kernels/vector.pxi"        # exp, tanh, sigmoid, erf, ... on vectors
include "kernels/activation.pxi"    # activations and their derivatives, on rows
include "kernels/optimizer.pxi"     # the update of one vector of parameters
include "kernels/product.pxi"       # matrix products, tile by tile, with what is fused into them
include "kernels/sample.pxi"        # the same for one row: products with a vector
include "kernels/loss.pxi"          # losses with their derivatives
include "kernels/random.pxi"        # shuffling
include "kernels/softmax.pxi"       # softmax and log-softmax, on rows
include "kernels/dropout.pxi"       # dropout, its masks by counter
include "kernels/norm.pxi"          # layer and batch normalisation
include "kernels/threads.pxi"       # the pool of threads
include "kernels/gates.pxi"         # sums, products, maxima of branches
include "kernels/program.pxi"       # ops over buffers, and the walks over them
include "kernels/online.pxi"        # one sample at a time through a whole network
include "kernels/step.pxi"          # the optimiser's step on a whole network
include "kernels/tangent.pxi"       # the walks along a direction: Jacobian and Hessian products
include "kernels/arrays.pxi"        # from Python objects to pointers
include "kernels/targets.pxi"       # targets and weights, checked
include "kernels/model.pxi"         # the class that Python sees
include "kernels/derivative.pxi"    # derivative products, as Python sees them
include "kernels/functional.pxi"    # the kernels on plain NumPy arrays
include "kernels/embed.pxi"         # prediction for C and Cython programs
