"""Text classification: which department a message is for, learned from sparse TF-IDF features.

    python examples/text.py        writes text.png

The messages are synthetic, made of phrases on and off the subject, with typos and numbers. scikit-learn's
`TfidfVectorizer` turns words and word pairs into tens of thousands of columns, of which a message uses a few dozen. The
network reads the CSR matrix directly: its first layer uses only the weight rows of the words in a message. To show the
effect of each word, `predict_proba` is called with messages of a single word: the identity matrix.
Needs the extra `demo` (scikit-learn, matplotlib).
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

import cnn

BLUE = "#0072b2"
# Per department: subjects, problems and requests. A phrase combines one of each.
SUBJECTS = {
    "billing": (
        "invoice,payment,refund,card,receipt,price,discount,charge,tax,amount,bank,transfer",
        "is wrong,was booked twice,is missing,is too high,has not arrived,does not add up,was declined",
        "please correct it,I want my money back,send me a copy,check the account,who can explain this",
    ),
    "delivery": (
        "parcel,courier,box,driver,order,package,tracking,address,shipment,doorstep,depot,label",
        "is late,was left in the rain,is lost,arrived broken,went to a neighbour,has not arrived,is missing",
        "when will it come,send it again,please change the street,I was at home all day,who can explain this",
    ),
    "technical": (
        "app,screen,update,login,battery,printer,cable,sensor,update,menu,display,bluetooth",
        "crashes,does not start,is frozen,shows an error,is slow,turns off by itself,does not connect,is missing",
        "I restarted it,how can I reset it,which version do I need,is there a patch,who can explain this",
    ),
    "returns": (
        "size,colour,jacket,shoes,exchange,voucher,label,seam,fabric,sole,zip,shirt",
        "is too small,does not fit,is torn,is not as pictured,looks worn,is the wrong one,is missing,came apart",
        "I would like to swap it,where do I send it,can I bring it to a shop,I want my money back,who can explain this",
    ),
}
SMALL_TALK = [
    *("hello", "good morning", "dear team", "thanks in advance", "best regards", "as I wrote last week"),
    *("this is urgent", "I have been a customer for years", "nobody answers the phone", "I am very patient"),
    *("is there a form", "please hurry", "it was a present", "the website says otherwise", "we talked on Monday"),
]
NAMES = tuple(SUBJECTS)


def messages(n, rng):
    """n texts, and the indices of their departments (n,)."""
    parts = [[column.split(",") for column in SUBJECTS[name]] for name in NAMES]
    texts, subjects = [], []
    for _ in range(n):
        subject = rng.randrange(len(NAMES))
        about = [subject] * rng.randint(1, 3) + [rng.randrange(len(NAMES))] * rng.randint(0, 2)
        phrases = [" ".join(["the", *map(rng.choice, parts[k])]) for k in about]
        phrases += [*rng.sample(SMALL_TALK, rng.randint(2, 5)), f"my number is {rng.randrange(10**6)}"]
        rng.shuffle(phrases)
        texts.append(" ".join(slip(word, rng) for word in " ".join(phrases).split()))
        subjects.append(subject)
    return texts, np.array(subjects)


def slip(word, rng):
    """The word; with probability 0.1 with a typo: two letters exchanged, or one doubled."""
    at = rng.randrange(len(word))
    chance = rng.random()
    if chance < 0.05:
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    return word[:at] + word[at] + word[at:] if chance < 0.1 else word


def network(columns):
    layers = [cnn.Linear(columns, 64), cnn.ReLU(), cnn.Dropout(0.3), cnn.Linear(64, len(NAMES))]
    return cnn.Sequential([*layers, cnn.CrossEntropyLoss()], optimizer=cnn.Adam(lr=2e-3), seed=0)


def telling(model, words, count=9):
    """The words with the highest probability of each class: lists of (word, probability)."""
    alone = model.predict_proba(scipy.sparse.identity(len(words), format="csr"))
    single = [i for i, word in enumerate(words) if " " not in word]
    return [
        [(words[i], alone[i, k]) for i in sorted(single, key=lambda i: -alone[i, k])[:count]] for k in range(len(NAMES))
    ]


def plot(found, confusion, path):
    """Left: the words of each class. Right: the confusion matrix."""
    figure = Figure(figsize=(12, 4.8), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    left.suptitle("Probability of the class for a message of one word", x=0.02, ha="left", fontsize=12)
    for axes, name, words in zip(left.subplots(1, len(NAMES)), NAMES, found, strict=True):
        axes.barh(range(len(words)), [p for _, p in words], color=BLUE, alpha=0.35)
        for at, (word, _) in enumerate(words):
            axes.text(0.03, at, word, va="center", fontsize=9.5)
        axes.set(xlim=(0, 1), xticks=(0, 1), yticks=(), title=name)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    axes = right.subplots()
    axes.imshow(confusion / confusion.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(confusion):
        axes.text(j, i, f"{count}", ha="center", va="center", color="white" if i == j else "black")
    ticks = range(len(NAMES))
    axes.set(xticks=ticks, yticks=ticks, xticklabels=NAMES, yticklabels=NAMES, xlabel="predicted", ylabel="true")
    axes.set_title("Unseen messages", fontsize=12, loc="left")
    axes.tick_params(length=0)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where text.png goes")
    options = parser.parse_args()

    texts, subjects = messages(options.messages, random.Random(0))
    print(f"{NAMES[subjects[0]]}: {texts[0]}")
    texts, texts_test, y, y_test = train_test_split(texts, subjects, test_size=0.25, random_state=0)
    tfidf = TfidfVectorizer(ngram_range=(1, 2), dtype=np.float32)
    x, x_test = tfidf.fit_transform(texts), tfidf.transform(texts_test)
    rows, columns = x.shape
    print(f"{rows:,} messages, {columns:,} columns, {x.nnz / rows:.0f} of them non-zero in a message")

    model = network(columns)
    began = time.perf_counter()
    model.fit(x, y, epochs=5, batch_size=64, validation_split=0.1, early_stopping=1, progress=False)
    took = time.perf_counter() - began
    print(f"trained in {took:.1f} s; a dense x would need {x.dtype.itemsize * rows * columns / 1e6:,.0f} MB")
    print(f"accuracy on unseen messages: {model.evaluate(x_test, y_test)['accuracy']:.1%}")
    confusion = np.zeros((len(NAMES), len(NAMES)), int)
    np.add.at(confusion, (y_test, model.predict(x_test).argmax(axis=1)), 1)
    plot(telling(model, tfidf.get_feature_names_out()), confusion, options.out / "text.png")
    print(f"see {options.out / 'text.png'}")


if __name__ == "__main__":
    main()
