"""The compiled core of cnn, private to it. The Python classes beside this file are its only callers.

Table of contents: every part below is included into this one translation unit, so that what is inline is inlined. The
build compiles it once for each instruction set and dtype (setup.py); the vector type is all that differs, and
kernels/simd.h is the only file that knows it. Compiler directives stand in setup.py.

How a call travels, `model.train_step(x, y)` for one:

    Sequential.train_step    Python: hands over x, y and the optimiser's hyper-parameters
    Program.train_step       checks the arrays (arrays.pxi), takes their pointers, lets go of the GIL if that pays
    run_pass                 shares the work among threads: chunks of rows, then pieces of the weights (pass.pxi)
    walk_forward, ...        the ops in order; the loss; the ops in reverse (walk.pxi)
    linear_op_forward, ...   fills in a Product: operands, strides, what to do with a finished tile (ops/linear.pxi)
    product                  cuts C into panels and tiles, packs B where that pays (product.pxi)
    tiles                    multiply-adds in registers, then bias and activation, derivative or optimiser's step
"""

include "kernels/types.pxi"             # the vector type and its operations (simd.h)
include "kernels/arena.pxi"             # memory
include "kernels/vector.pxi"            # exp, tanh, sigmoid, erf, ... on vectors

include "kernels/activation.pxi"        # activations and their derivatives
include "kernels/optimizer.pxi"         # optimisers: the update of a vector of parameters
include "kernels/loss.pxi"              # losses and their derivatives
include "kernels/random.pxi"            # shuffling, and the bits that dropout is made of

include "kernels/product.pxi"           # matrix products, tile by tile, with what is fused into them
include "kernels/blocks.pxi"            # products of vectors over lanes, for models or rows in the lanes
include "kernels/narrow.pxi"            # products with the transposed weights of a narrow layer
include "kernels/sample.pxi"            # products with a vector, for one row
include "kernels/rows.pxi"              # rows added to rows
include "kernels/sparse.pxi"            # products with sparse rows
include "kernels/gradients.pxi"         # norms, clipping, penalties, averages

include "kernels/network.pxi"           # ops over buffers, workspaces, passes: the structs, and the table of the ops
include "kernels/jet.pxi"               # values with their derivatives by the inputs: what the ops share
include "kernels/ops/linear.pxi"        # an op a file: forward, backward, tangent and second beside each other
include "kernels/ops/activation.pxi"
include "kernels/ops/softmax.pxi"
include "kernels/ops/dropout.pxi"
include "kernels/ops/norm.pxi"          # what the two norms share
include "kernels/ops/layer_norm.pxi"
include "kernels/ops/batch_norm.pxi"
include "kernels/ops/constant.pxi"
include "kernels/ops/prelu.pxi"
include "kernels/ops/merge.pxi"         # what joins branches
include "kernels/ops/add.pxi"
include "kernels/ops/multiply.pxi"
include "kernels/ops/maximum.pxi"
include "kernels/ops/concat.pxi"
include "kernels/ops/columns.pxi"

include "kernels/threads.pxi"           # the pool of threads
include "kernels/walk.pxi"              # the ops in order and in reverse
include "kernels/samples.pxi"           # VL rows of a narrow network in the lanes of the vectors
include "kernels/pass.pxi"              # a batch: chunks of rows, pieces of weights, shared among threads
include "kernels/online.pxi"            # one sample at a time through a whole network
include "kernels/step.pxi"              # the optimiser's step on a whole network

include "kernels/arrays.pxi"            # from Python objects to pointers
include "kernels/workspace.pxi"         # room for a batch
include "kernels/compile.pxi"           # from Python's description to a network
include "kernels/parameters.pxi"        # packed vectors and views of the parameters
include "kernels/targets.pxi"           # losses, targets and weights, checked
include "kernels/program.pxi"           # the class that Python sees
include "kernels/shards.pxi"            # batches that several processes share
include "kernels/members.pxi"           # many models at once, one after the other on each thread
include "kernels/lanes.pxi"             # ... or one in each lane of the vectors
include "kernels/crew.pxi"              # ... as Python sees them
include "kernels/residual.pxi"          # values with their derivatives by the inputs, and gradients of losses of them
include "kernels/derivative.pxi"        # derivative products, as Python sees them
include "kernels/line_search.pxi"       # a step along a direction (More and Thuente)
include "kernels/lbfgs.pxi"             # L-BFGS
include "kernels/cholesky.pxi"          # a symmetric matrix, its factor, and what is solved with it
include "kernels/gauss_newton.pxi"      # J^T H J, for methods of second order
include "kernels/functional.pxi"        # the kernels on plain NumPy arrays
include "kernels/stream.pxi"            # rows of a stream
include "kernels/embed.pxi"             # prediction for C and Cython programs
