"""`learn_one` of `cnn.river` beside river's logistic regression, and deep-river's network if installed: one thread.

    OMP_NUM_THREADS=1 python bench/streams.py

Rows of N features, two classes; the networks have 32 hidden units and Adam. All learn the same rows in turns; times are
the least of ROUNDS. What is compared is checked first: after the rounds each model must tell the classes apart.
"""

import random
import time

from river import linear_model, preprocessing

import cnn
from cnn.river import MLPClassifier

ROUNDS, ROWS = 12, 300


def models(features):
    yield "cnn.river", MLPClassifier((32,), optimizer=cnn.Adam(lr=0.01), seed=0)
    yield "scaler, logistic regression", preprocessing.StandardScaler() | linear_model.LogisticRegression()
    try:
        import torch
        from deep_river.classification import Classifier
    except ImportError:
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = torch.nn.Linear(features, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2), torch.nn.Softmax(-1)

    class Network(torch.nn.Sequential):
        def __init__(self):
            super().__init__(*parts)

    options = {"loss_fn": "cross_entropy", "optimizer_fn": "adam", "lr": 0.01, "is_class_incremental": False}
    yield "deep-river", Classifier(module=Network(), **options)


def main() -> None:
    cnn.set_num_threads(1)
    print("| features | model | learn_one, us | accuracy |")
    print("|---|---|---|---|")
    for features in (3, 10, 30, 100):
        draw = random.Random(0).gauss
        xs = [{f"f{i}": draw(0.0, 1.0) for i in range(features)} for _ in range(ROWS)]
        rows = [(x, x["f0"] + x["f1"] > 0) for x in xs]
        contenders, best = list(models(features)), {}
        for _ in range(ROUNDS):
            for name, model in contenders:
                start = time.perf_counter()
                for x, y in rows:
                    model.learn_one(x, y)
                best[name] = min(best.get(name, 1.0), (time.perf_counter() - start) / ROWS)
        for name, model in contenders:
            accuracy = sum(model.predict_one(x) == y for x, y in rows) / ROWS
            assert accuracy > 0.9, (name, accuracy)
            print(f"| {features} | {name} | {best[name] * 1e6:.1f} | {accuracy:.2f} |")


if __name__ == "__main__":
    main()
