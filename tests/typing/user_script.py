"""A user's script, which `mypy --strict` checks (make lint): what calls return has its real type."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import cnn
import cnn.sklearn

Array = NDArray[np.floating[Any]]

x = np.random.default_rng(0).normal(size=(100, 4))
y = x[:, :1] + x[:, 1:2]
labels = (y[:, 0] > 0).astype(int)

layers: list[cnn.layers.Layer] = [cnn.Linear(4, 8), cnn.GELU(approximate="tanh"), cnn.Dropout(0.1), cnn.Linear(8, 1)]
optimizer = cnn.AdamW(lr=1e-3, ema_decay=0.9, schedule=cnn.CosineAnnealingLR(T_max=10))
model = cnn.Sequential([*layers, cnn.MSELoss()], optimizer=optimizer, dtype=np.float64, seed=0)
assert_type(optimizer.lr, float)
assert_type(model.dtype, np.dtype[Any])
assert_type(model.loss, cnn.losses.Loss | None)
assert_type(model.optimizer, cnn.optim.Optimizer | None)


class Report(cnn.Callback):
    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        print(epoch, logs["loss"])


history = model.fit(x, y, epochs=2, batch_size=32, validation_split=0.2, callbacks=[Report()])
assert_type(history, cnn.History)
assert_type(history["val_loss"], list[float])
assert_type(history.best_epoch, int | None)
assert_type(model.history, cnn.History | None)

assert_type(model.predict(x, threads=1), Array)
assert_type(model(x), Array)
assert_type(model(x, y), float)
assert_type(model.train_step(x, y), float)
assert_type(model.evaluate(x, y, metrics=["mae"]), dict[str, float])
assert_type(model.parameters, Array)
assert_type(model.loss_and_grad(x, y), tuple[float, Array])
assert_type(model.grad_input(x, y), Array)
assert_type(model.copy(), cnn.Sequential)
assert_type(model.eval(), cnn.Sequential)
assert_type(cnn.Linear(2, 3).forward([[1.0, 2.0]]), Array)
assert_type(cnn.ReLU().derivative(x), Array)
with model.using_average() as averaged:
    assert_type(averaged, cnn.Sequential)

ensemble = cnn.Ensemble([*layers, cnn.MSELoss()], members=3, optimizer=cnn.SGD(lr=0.1), seed=0)
assert_type(ensemble.fit(x, y, progress=False), cnn.ManyHistory)
assert_type(ensemble[0], cnn.Sequential)
assert_type(ensemble.parameters, Array)
assert_type(cnn.fit_many([model, model.copy()], [(x, y), (x, y)]), cnn.ManyHistory)

classifier = cnn.sklearn.MLPClassifier(hidden_layer_sizes=(16,), random_state=0, max_iter=2)
classifier.fit(x, labels)
assert_type(classifier.predict_proba(x), Array)
regressor = cnn.sklearn.MLPRegressor(max_iter=2)
regressor.fit(x, y[:, 0])
assert_type(regressor.predict(x), Array)
