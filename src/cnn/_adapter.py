"""The program's methods as the training loop wants them, over the methods that it has today."""

import numpy as np


class Adapter:
    def __init__(self, model):
        self.model = model
        self.program = model._program
        self.inputs = self.program.inputs
        self.targets = self.program.targets
        self.predict = self.program.predict
        self.forward = self.program.forward
        self.backward = self.program.backward
        self.zero_grads = self.program.zero_grads

    outputs = property(
        lambda self: self.program.predict(np.empty((0, self.model.layers[0].in_features)), None, 1).shape[1]
    )
    steps = property(lambda self: self.program.steps)
    parameters = property(lambda self: self.program.parameters)

    def set_parameters(self, vector):
        self.program.set_parameters(vector)

    def step(self):
        self.program.step(self.model._hyper())

    def snapshot(self):
        return self.program.snapshot(self.model.optimizer.states)

    def restore(self, saved):
        self.program.restore(saved)

    def weights(self, w, batch, name):
        w = np.asarray(w, self.model.dtype)
        if w.shape != (batch,):
            raise ValueError(f"{name}: expected shape ({batch},), got {w.shape}")
        if not (np.isfinite(w).all() and (w >= 0).all()):
            raise ValueError(f"{name}: expected finite weights of at least 0")
        return w

    def train_batches(self, x, y, w, order, start, stop, batch_size, rates, out, threads, accumulate, totals):
        assert w is None
        assert accumulate == 1
        hyper = self.model._hyper().copy()
        if rates is None and out is None:
            loss, right, bad = self.program.train_batches(
                x, y, order, start, stop, batch_size, hyper, threads, totals[0]
            )
            totals += [loss - totals[0], stop - start, right, stop - start]
            totals[0] = loss
            return bad
        for i, at in enumerate(range(start, stop, batch_size)):
            end = min(stop, at + batch_size)
            if rates is not None:
                hyper[1] = rates[i, 0]
                if not np.isnan(rates[i, 1]):
                    hyper[2] = rates[i, 1]
            if out is not None:
                out[at:end] = self.program.predict(x[at:end] if order is None else x[order[at:end]], None, threads)
            loss, right, bad = self.program.train_batches(x, y, order, at, end, batch_size, hyper, threads, totals[0])
            totals[1:] += [end - at, right, end - at]
            totals[0] = loss
            if bad >= 0:
                return bad
        return -1

    def evaluate(self, x, y, w, threads):
        assert w is None
        loss, right = self.program.evaluate(x, y, threads)
        return loss * len(x), len(x), right
