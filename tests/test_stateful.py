"""Random sequences of every public call on one model, with the float64 NumPy network of grid.py beside it."""

import copy

import grid
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from networks import assert_close

import cnn

RTOL = 1e-8
BATCHES = st.integers(2, 9)


class Life(RuleBasedStateMachine):
    """What has been done to a model, and the truth it must agree with after each call."""

    @initialize(
        layer=st.sampled_from(sorted(set(grid.LAYERS) - {"dropout", "maxout"})),
        optimizer=st.sampled_from(sorted(grid.OPTIMIZERS)),
        seed=st.integers(0, 99),
    )
    def born(self, layer, optimizer, seed):
        entry = grid.LAYERS[layer]
        parts = [cnn.Linear(3, 5), cnn.Tanh(), entry.make(5, "float64"), cnn.Linear(entry.width(5), 2), cnn.MSELoss()]
        self.optimizer = grid.OPTIMIZERS[optimizer]
        self.model = cnn.Sequential(parts, self.optimizer.make(), dtype="float64", seed=seed)
        nodes = [grid.Linear(), grid.Function(name="tanh"), entry.node(), grid.Linear()]
        self.truth = grid.Network(nodes, grid.LOSSES["mse"].truth(2), self.model.state_dict())
        self.rng = np.random.default_rng(seed)
        self.states = {}
        self.whole = layer == "linear penalised" or {"clip_norm", "clip_value"} & set(self.optimizer.common)
        self.gradients = np.zeros(self.model.parameters.size)
        self.pending = None  # what backward will return and add, after a forward pass with targets

    def batch(self, rows):
        return self.rng.standard_normal((rows, 3)), self.rng.standard_normal((rows, 2))

    def stepped(self):
        grads, at = {}, 0
        for name, a in self.truth.named().items():
            grads[name] = self.gradients[at : at + a.size].reshape(a.shape)
            at += a.size
        self.optimizer.step(self.truth, grads, self.states)
        self.pending = None

    # the explicit loop

    @rule(rows=BATCHES)
    def forward(self, rows):
        x, y = self.batch(rows)
        training = self.model.training
        loss, dx, grads = self.truth.gradients(x, y, None, training)
        assert_close(self.model(x, y), loss, RTOL, "loss")
        self.pending = dx, np.concatenate([g.ravel() for g in grads.values()])

    @rule(rows=BATCHES)
    def forward_without_targets(self, rows):
        x, _ = self.batch(rows)
        assert_close(self.model(x), self.truth.forward(x, self.model.training), RTOL, "outputs")
        self.pending = None

    @rule(debug=st.booleans())
    def backward(self, debug):
        if self.pending is None:
            with pytest.raises(RuntimeError, match="backward needs"):
                self.model.backward(debug=debug)
            return
        dx, grads = self.pending
        assert_close(self.model.backward(debug=debug), dx, RTOL, "gradient of x")
        self.gradients = self.gradients + grads
        self.pending = None

    @rule()
    def zero_grads(self):
        self.model.zero_grads()
        self.gradients = np.zeros_like(self.gradients)

    @rule()
    def step(self):
        self.model.step()
        clipped = self.optimizer.common.get("clip_norm") or self.optimizer.common.get("clip_value")
        self.stepped()
        if clipped:  # they are clipped where they lie
            self.gradients = self.model.gradients
            assert np.abs(self.gradients).max() <= 1

    @rule(rows=BATCHES)
    def loss_and_grad(self, rows):
        x, y = self.batch(rows)
        loss, _, grads = self.truth.gradients(x, y, None, self.model.training)
        found, gradient = self.model.loss_and_grad(x, y)
        self.gradients = np.concatenate([g.ravel() for g in grads.values()])
        assert_close(found, loss, RTOL, "loss")
        assert_close(gradient, self.gradients, RTOL, "gradient")
        self.pending = None

    # native training

    def trained(self, x, y, w=None):
        loss, _, grads = self.truth.gradients(x, y, w, self.model.training)
        self.optimizer.step(self.truth, grads, self.states)
        self.pending = None
        return loss

    def same_gradients(self):
        """The fused step leaves them alone; clipping and penalties need their memory."""
        if self.whole:
            self.gradients = self.model.gradients

    @rule(rows=BATCHES, weighted=st.booleans())
    def train_step(self, rows, weighted):
        x, y = self.batch(rows)
        w = self.rng.random(rows) + 0.5 if weighted else None
        expected = self.trained(x, y, w)
        assert_close(self.model.train_step(x, y, w), expected, RTOL, "loss of a step")
        self.same_gradients()

    @rule(rows=BATCHES, epochs=st.integers(1, 3))
    def fit(self, rows, epochs):
        x, y = self.batch(rows)
        expected = [self.trained(x, y) for _ in range(epochs)]
        history = self.model.fit(x, y, epochs=epochs, batch_size=rows, shuffle=False, progress=False)
        assert_close(history["loss"], expected, RTOL, "history")
        self.same_gradients()

    # nothing changes

    @rule(rows=st.integers(0, 200))
    def predict(self, rows):
        x, _ = self.batch(rows)
        out = np.empty((rows, 2))
        assert self.model.predict(x, out=out) is out
        assert_close(out, self.truth.forward(x, False), RTOL, "outputs")

    @rule(rows=BATCHES)
    def evaluate(self, rows):
        x, y = self.batch(rows)
        loss = self.truth.gradients(x, y, None, False)[0]
        assert_close(self.model.evaluate(x, y)["loss"], loss, RTOL, "evaluation")

    @rule(rows=BATCHES)
    def derivatives(self, rows):
        x, y = self.batch(rows)
        g = self.rng.standard_normal((rows, 2))
        t = self.rng.standard_normal((rows, 3))
        assert_close((self.model.vjp(x, g) * t).sum(), (g * self.model.jvp(x, t)).sum(), 1e-7, "vjp and jvp")
        u, v = self.rng.standard_normal((2, self.gradients.size))
        assert_close(self.model.hvp(x, y, u) @ v, self.model.hvp(x, y, v) @ u, 1e-6, "symmetry of the Hessian")
        self.pending = None

    @rule(wrong=st.integers(0, 6))
    def mistakes(self, wrong):
        x, y = self.batch(4)
        calls = (
            lambda: self.model.predict(x[:, :2]),
            lambda: self.model.train_step(x, y[:3]),
            lambda: self.model.train_step(x[:0], y[:0]),
            lambda: self.model.fit(x, y, batch_size=0),
            lambda: self.model.load_weights({}),
            lambda: setattr(self.model, "parameters", self.gradients[1:]),
            lambda: self.model.forward(x, y.astype(str)),
        )
        with pytest.raises((ValueError, TypeError)):
            calls[wrong]()

    # the parameters, the mode, copies

    @rule()
    def set_parameters(self):
        vector = self.rng.standard_normal(self.gradients.size) / 2
        self.model.parameters = vector
        self.truth.vector = vector
        self.pending = None

    @rule()
    def write_into_a_weight(self):
        value = self.rng.standard_normal((3, 5)) / 2
        self.model[0].weight = value
        self.truth.parts[0].arrays["weight"] = value
        self.pending = None

    @rule(mode=st.booleans())
    def train(self, mode):
        assert self.model.train(mode) is self.model

    @rule()
    def copied(self):
        """A copy has everything but the gradients, the pending pass, and the mode."""
        mode = self.model.training
        self.model = copy.deepcopy(self.model).train(mode)
        self.gradients = np.zeros_like(self.gradients)
        self.pending = None

    @rule()
    def loaded(self):
        self.model.load_weights(self.model.state_dict())
        self.pending = None

    @rule()
    def another_optimizer(self):
        self.model.optimizer = self.optimizer.make()
        self.states = {}

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def agrees(self):
        state = self.model.state_dict()
        for name, a in self.truth.named().items():
            assert_close(state[name], a, 1e-6, name)
        for key, node in self.truth.walk():
            for name, a in node.statistics.items():
                assert_close(state[f"{key}.{name}"], a, 1e-6, name)
        np.testing.assert_allclose(self.model.gradients, self.gradients, rtol=1e-6, atol=1e-8)
        named = [a.ravel() for name, a in state.items() if name.endswith(("weight", "bias"))]
        np.testing.assert_array_equal(self.model.parameters, np.concatenate(named))
        # rounding must not pile up: the truth goes on from the library's numbers
        self.truth.vector = self.model.parameters


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=20)
