"""The naive truth: NumPy formulas in the precision of their arguments, written to be read.

An implementation of its own, and no call into the library or a framework: whatever is wrong in the
library cannot be wrong here in the same way, and the formulas can be checked by eye. Give float64 to
judge float32 results, and np.longdouble, where it is wider, to judge float64. `Network` computes in
float64.
"""

import functools
import math

import numpy as np

# activations -------------------------------------------------------------------------------------

_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # float64 whatever comes in
# 2 sqrt(2 / pi), and its product with 0.044715; to more digits than float64 has
_GELU_TANH = np.longdouble("1.59576912160573071175978423973752")
_GELU_TANH_CUBE = np.longdouble("0.0713548162726002487763387522798797")


def _sigmoid(z):
    e = np.exp(-np.abs(z))  # at most 1: the formula 1 / (1 + exp(-z)) overflows
    return np.where(z > 0, 1, e) / (1 + e)


def _normal(z):
    """The normal distribution's probability of a value below z, and its density at z."""
    return _erfc(-z / math.sqrt(2)) / 2, np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_argument(z):
    """t with gelu_tanh(z) = z sigmoid(t), and its derivative. (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    a, b = z.dtype.type(_GELU_TANH), z.dtype.type(_GELU_TANH_CUBE)
    return a * z + b * z**3, a + 3 * b * z**2


def activation(name, z, param=None):
    """f(z) for finite z; param is the slope of leaky_relu (default 0.01) or elu's alpha (1)."""
    z = np.asarray(z)
    if name == "identity":
        return z.copy()
    if name == "relu":
        return np.maximum(z, 0)
    if name == "leaky_relu":
        return np.where(z > 0, z, (0.01 if param is None else param) * z)
    if name == "elu":
        return np.where(z > 0, z, (1.0 if param is None else param) * np.expm1(np.minimum(z, 0)))
    if name == "sigmoid":
        return _sigmoid(z)
    if name == "tanh":
        return np.tanh(z)
    if name == "gelu":
        return z * _normal(z)[0]
    if name == "gelu_tanh":
        return z * _sigmoid(_gelu_tanh_argument(z)[0])
    if name == "silu":
        return z * _sigmoid(z)
    if name == "softplus":
        return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    raise ValueError(name)


def activation_derivative(name, z, param=None):
    """f'(z) for finite z; at a kink the derivative from the left."""
    z = np.asarray(z)
    if name == "identity":
        return np.ones_like(z)
    if name == "relu":
        return np.where(z > 0, 1, 0).astype(z.dtype)
    if name == "leaky_relu":
        return np.where(z > 0, 1, 0.01 if param is None else param).astype(z.dtype)
    if name == "elu":
        return np.where(z > 0, 1, (1.0 if param is None else param) * np.exp(np.minimum(z, 0)))
    if name == "sigmoid":
        return _sigmoid(z) * _sigmoid(-z)
    if name == "tanh":
        return 4 * _sigmoid(2 * z) * _sigmoid(-2 * z)  # 1 - tanh(z)**2
    if name == "gelu":
        probability, density = _normal(z)
        return probability + z * density
    if name == "gelu_tanh":
        t, slope = _gelu_tanh_argument(z)
        return _sigmoid(t) + z * slope * _sigmoid(t) * _sigmoid(-t)
    if name == "silu":
        return _sigmoid(z) + z * _sigmoid(z) * _sigmoid(-z)
    if name == "softplus":
        return _sigmoid(z)
    raise ValueError(name)


# -- softmax and norms ------------------------------------------------------------------------------


def softmax(x):
    """exp(x) / sum(exp(x)), along rows."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_backward(grad, x):
    """grad times the Jacobian, y_i (delta_ij - y_j), which is formed here."""
    y = softmax(x)
    jacobian = y[:, :, None] * (np.eye(y.shape[1]) - y[:, None, :])
    return np.einsum("bi,bij->bj", grad, jacobian)


def log_softmax(x):
    """x - log(sum(exp(x))), along rows."""
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def log_softmax_backward(grad, x):
    """grad times the Jacobian, delta_ij - y_j."""
    jacobian = np.eye(x.shape[1]) - softmax(x)[:, None, :]
    return np.einsum("bi,bij->bj", grad, jacobian)


def norm(x, axis, eps, weight=1.0, bias=0.0):
    """(x - mean) / sqrt(var + eps) weight + bias, the statistics along an axis: 0, batch norm; 1, layer norm."""
    mean, var = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def norm_backward(grad, x, axis, eps, weight=1.0):
    """Gradients of x, weight and bias. mean and var are functions of x, too: dx is the sum of the three ways."""
    n = x.shape[axis]
    mean, var = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    deviation = np.sqrt(var + eps)
    normal = grad * weight
    d_var = (normal * (x - mean)).sum(axis=axis, keepdims=True) * -0.5 / deviation**3
    d_mean = -(normal / deviation).sum(axis=axis, keepdims=True)
    dx = normal / deviation + d_var * 2 * (x - mean) / n + d_mean / n
    return dx, (grad * (x - mean) / deviation).sum(axis=0), grad.sum(axis=0)


# -- layers, losses, optimiser, network -----------------------------------------------------------


def linear_forward(x, weight, bias=None):
    """x W + b."""
    z = x @ weight
    return z if bias is None else z + bias


def linear_backward(grad_output, x, weight):
    """Gradients of x, W and b."""
    return grad_output @ weight.T, x.T @ grad_output, grad_output.sum(axis=0)


def elementwise_loss(name, y, t, **options):
    """The loss of each output and its derivative."""
    d = y - t
    if name == "mse":
        return d**2, 2 * d
    if name == "l1" or options.get("beta") == 0:
        return np.abs(d), np.sign(d)
    if name == "huber":
        delta = options["delta"]
        return np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2)), np.clip(d, -delta, delta)
    if name == "smooth_l1":
        beta = options["beta"]
        return np.where(np.abs(d) < beta, d**2 / (2 * beta), np.abs(d) - beta / 2), np.clip(d / beta, -1, 1)
    if name == "bce":
        positive = np.asarray(1.0 if options["pos_weight"] is None else options["pos_weight"]) * t
        value = positive * np.logaddexp(0, -y) + (1 - t) * np.logaddexp(0, y)
        return value, (1 - t) * _sigmoid(y) - positive * _sigmoid(-y)
    if name == "poisson":
        above = np.maximum(t, 1)
        stirling = np.where(t > 1, t * np.log(above) - t + np.log(2 * np.pi * above) / 2, 0) * options["full"]
        if options["log_input"]:
            return np.exp(y) - t * y + stirling, np.exp(y) - t
        rate = y + options["eps"]
        return y - t * np.log(rate) + stirling, 1 - t / rate
    if name == "quantile":
        q = np.asarray(options["quantiles"])
        return np.where(d < 0, -q * d, (1 - q) * d), np.where(d < 0, -q, np.where(d > 0, 1 - q, 0))
    raise ValueError(name)


def class_loss(name, z, t, weight=None, ignore_index=None, label_smoothing=0.0):
    """The loss of each row, its gradient, and what it counts for in a mean; t are labels or class probabilities."""
    n = z.shape[1]
    c = np.ones(n) if weight is None else np.asarray(weight)
    if t.ndim == 1:
        counts = t != ignore_index
        q = np.eye(n)[np.where(counts, t, 0)] * counts[:, None]
        counts = q @ c
    else:
        q, counts = t, np.ones(len(t))
    if name == "nll":
        return -(c * q * z).sum(axis=1), -c * q, counts
    a = c * ((1 - label_smoothing) * q + label_smoothing / n * (q.sum(axis=1, keepdims=True) > 0))
    shifted = z - z.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -(a * log_p).sum(axis=1), a.sum(axis=1, keepdims=True) * np.exp(log_p) - a, counts


def loss(name, outputs, targets, sample_weight=None, reduction="mean", **options):
    """The loss and its gradient, by the formulas of the library's docstrings."""
    w = np.ones(len(outputs)) if sample_weight is None else np.asarray(sample_weight)
    if name in ("cross_entropy", "nll"):
        rows, gradient, counts = class_loss(name, outputs, np.asarray(targets), **options)
    else:
        targets = np.reshape(targets, (len(outputs), -1))
        values, gradient = elementwise_loss(name, outputs, targets, **options)
        rows, counts = values.sum(axis=1), np.ones(len(outputs))
        if reduction == "mean":
            rows, gradient = rows / outputs.shape[1], gradient / outputs.shape[1]
    divisor = (w * counts).sum() if reduction == "mean" else 1
    return (w * rows).sum() / divisor, w[:, None] * gradient / divisor


LOSSES = {name: functools.partial(loss, name) for name in ("mse", "cross_entropy")}


def sgd_step(param, grad, buffer=None, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    """The new parameters and momentum buffer, by the formulas of torch.optim.SGD.

    buffer None: there has been no step with momentum yet.
    """
    step = grad + weight_decay * param
    if momentum:
        buffer = step if buffer is None else momentum * buffer + (1 - dampening) * step
        step = step + momentum * buffer if nesterov else buffer
    return param - lr * step, buffer


def adam_step(param, grad, state=None, *, lr, betas, eps, weight_decay, amsgrad=False, decoupled=False):
    """The new parameters and state (m, v, largest v, steps), by torch.optim.Adam's formulas; decoupled: AdamW's."""
    m, v, largest, t = (0.0, 0.0, 0.0, 0) if state is None else state
    t += 1
    if decoupled:
        param = param - lr * weight_decay * param
    else:
        grad = grad + weight_decay * param
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    largest = np.maximum(largest, v)
    m_hat = m / (1 - betas[0] ** t)
    v_hat = (largest if amsgrad else v) / (1 - betas[1] ** t)
    return param - lr * m_hat / (np.sqrt(v_hat) + eps), (m, v, largest, t)


def rmsprop_step(param, grad, state=None, *, lr, alpha, eps, weight_decay, momentum, centered):
    """The new parameters and state (v, mean gradient, momentum buffer), by the formulas of torch.optim.RMSprop."""
    v, mean, buffer = (0.0, 0.0, 0.0) if state is None else state
    grad = grad + weight_decay * param
    v = alpha * v + (1 - alpha) * grad**2
    mean = alpha * mean + (1 - alpha) * grad
    step = grad / (np.sqrt(v - mean**2 if centered else v) + eps)
    if momentum:
        step = buffer = momentum * buffer + step
    return param - lr * step, (v, mean, buffer)


def adagrad_step(param, grad, state=None, *, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    """The new parameters and state (sum of squares, steps), by the formulas of torch.optim.Adagrad."""
    total, t = (initial_accumulator_value, 0) if state is None else state
    grad = grad + weight_decay * param
    total = total + grad**2
    return param - lr / (1 + t * lr_decay) * grad / (np.sqrt(total) + eps), (total, t + 1)


class Network:
    """A chain of layers.

    layers: names, "linear" or an activation with its parameter, as [("linear", None), ("elu", 0.5)].
    loss: a key of LOSSES, or None.
    parameters: {"0.weight": (in, out), "0.bias": (out,), ...}, the number being the layer's place;
    a linear layer without a bias has none.
    """

    def __init__(self, layers, loss, parameters):
        self.layers = layers
        self.loss = loss and LOSSES[loss]
        self.parameters = {name: np.array(p, np.float64) for name, p in parameters.items()}
        self.buffers = {}

    def forward(self, x):
        """The outputs; keeps what went into each layer."""
        self.inputs = []
        for i, (name, param) in enumerate(self.layers):
            self.inputs.append(x := np.asarray(x, np.float64))
            if name == "linear":
                x = linear_forward(x, self.parameters[f"{i}.weight"], self.parameters.get(f"{i}.bias"))
            else:
                x = activation(name, x, param)
        return x

    def backward(self, grad):
        """The gradients of x and of the parameters, by name."""
        grads = {}
        for i, (name, param) in reversed(list(enumerate(self.layers))):
            x = self.inputs[i]
            if name == "linear":
                grad, grads[f"{i}.weight"], grads[f"{i}.bias"] = linear_backward(
                    grad, x, self.parameters[f"{i}.weight"]
                )
            else:
                grad = grad * activation_derivative(name, x, param)
        return grad, {name: grads[name] for name in self.parameters}

    def gradients(self, x, targets):
        """The loss, its gradient with respect to x, and those with respect to the parameters."""
        loss, grad = self.loss(self.forward(x), targets)
        return loss, *self.backward(grad)

    def train_step(self, x, targets, rule=sgd_step, **hyper):
        """One step of `rule`, which `hyper` is for; the loss before it."""
        loss, _, grads = self.gradients(x, targets)
        for name, grad in grads.items():
            self.parameters[name], self.buffers[name] = rule(
                self.parameters[name], grad, self.buffers.get(name), **hyper
            )
        return loss

    def distance_to_kinks(self):
        """The least |z| that went into a ReLU, leaky ReLU or ELU at the last forward."""
        kinked = ("relu", "leaky_relu", "elu")
        return min(
            (np.abs(z).min() for (name, _), z in zip(self.layers, self.inputs, strict=True) if name in kinked),
            default=np.inf,
        )
