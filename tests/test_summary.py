"""summary and _repr_html_: the tables of a model."""

from html.parser import HTMLParser

import pytest

import cnn


class Table(HTMLParser):
    """Collects the cells of a table, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def model():
    layers = [cnn.Linear(300, 20), cnn.LeakyReLU(0.2), cnn.Linear(20, 3, bias=False), cnn.CrossEntropyLoss()]
    return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1))


ROWS = [
    ["", "layer", "output", "parameters", "FLOPs / sample"],
    ["0", "Linear(300, 20)", "(batch, 20)", "6,020", "12,000"],
    ["1", "LeakyReLU(negative_slope=0.2)", "(batch, 20)", "", ""],
    ["2", "Linear(20, 3, bias=False)", "(batch, 3)", "60", "120"],
    ["3", "CrossEntropyLoss()", "scalar", "", ""],
]


def test_summary(capsys):
    text = model().summary()
    lines = text.splitlines()
    assert capsys.readouterr().out == text + "\n"
    assert repr(text) == ""  # an interpreter does not show it again
    rule = lines[1]
    assert set(rule) == {"-"}
    assert lines[6] == rule
    for line, row in zip([lines[0], *lines[2:6]], ROWS, strict=False):
        assert line.split() == " ".join(row).split()
        assert len(line) <= len(rule)
    assert lines[7] == "6,080 parameters, float32, SGD(lr=0.1)"
    assert lines[8] == "12,120 FLOPs a sample forward, about three times that in training"
    assert lines[9].endswith("KiB of memory now, workspaces for the largest batch so far included")


def test_html():
    html = model()._repr_html_()
    assert Table(html).rows == ROWS
    assert "6,080 parameters, float32, SGD(lr=0.1)" in html


def test_html_is_escaped(monkeypatch):
    one = model()
    monkeypatch.setattr(type(one.layers[1]), "__repr__", lambda self: "<script>&'\"")
    html = one._repr_html_()
    assert "<script>" not in html
    assert Table(html).rows[2][1] == "<script>&'\""


@pytest.mark.parametrize("loss", [False, True])
def test_without_loss_and_optimizer(loss, capsys):
    one = cnn.Sequential([cnn.Tanh(), cnn.Linear(2, 1), *[cnn.MSELoss()] * loss], dtype="float64")
    one.summary()
    out = capsys.readouterr().out
    assert "3 parameters, float64\n" in out
    assert len(Table(one._repr_html_()).rows) == 3 + loss
    assert Table(one._repr_html_()).rows[1][1:3] == ["Tanh()", "(batch, 2)"]


def test_layers_in_layers(capsys):
    """Under the names that begin theirs in state_dict."""
    inner = cnn.Sequential([cnn.Linear(8, 4), cnn.Tanh(), cnn.Linear(4, 8)])
    layers = [cnn.Linear(3, 8), cnn.BatchNorm1d(8), cnn.Add(cnn.Identity(), inner), cnn.Dropout(0.5), cnn.Linear(8, 2)]
    one = cnn.Sequential([*layers, cnn.MSELoss()])
    rows = Table(one._repr_html_()).rows[1:]
    assert [(row[0], row[1].partition("(")[0], row[2], row[3]) for row in rows] == [
        ("0", "Linear", "(batch, 8)", "32"),
        ("1", "BatchNorm1d", "(batch, 8)", "16"),
        ("2", "Add", "(batch, 8)", ""),
        ("2.0", "Identity", "", ""),
        ("2.1", "Sequential", "", ""),
        ("2.1.0", "Linear", "(batch, 4)", "36"),
        ("2.1.1", "Tanh", "(batch, 4)", ""),
        ("2.1.2", "Linear", "(batch, 8)", "40"),
        ("3", "Dropout", "(batch, 8)", ""),
        ("4", "Linear", "(batch, 2)", "18"),
        ("5", "MSELoss", "scalar", ""),
    ]
    names = [name.rpartition(".")[0] for name in one.state_dict()]
    assert set(names) <= {row[0] for row in rows}
    one.summary()
    out = capsys.readouterr().out
    assert "142 parameters, float32" in out
    assert f"{2 * (3 * 8 + 8 * 4 + 4 * 8 + 8 * 2):,} FLOPs a sample forward" in out


def test_nested_representations_are_indented():
    inner = cnn.Sequential([cnn.Linear(2, 3), cnn.Sequential([cnn.Linear(3, 4)])])
    assert repr(cnn.Sequential([inner, cnn.Tanh()])).splitlines() == [
        "Sequential(",
        "  (0): Sequential(",
        "    (0): Linear(2, 3)",
        "    (1): Sequential(",
        "      (0): Linear(3, 4)",
        "    )",
        "  )",
        "  (1): Tanh()",
        ")",
    ]


def test_n_parameters(capsys):
    """Of a model all of them; in the table each once."""
    inner = cnn.Sequential([cnn.Linear(3, 7), cnn.Add(cnn.Linear(7, 7), cnn.Identity())])
    model = cnn.Sequential([inner, cnn.Tanh(), cnn.Linear(7, 2)])
    assert model.n_parameters == len(model.parameters) == 28 + 56 + 16
    assert inner.n_parameters == model[:1].n_parameters == 28 + 56
    model.summary()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["0"]] == [["0", "Sequential"]]
