"""Writes the pages of the API reference: one per topic, and one per class or function that `cnn` exports.

All public names get a page, so a new layer, loss or optimiser needs no change here.
"""

import inspect

import cnn
import cnn.sklearn
from cnn import functional, initializers, layers, losses, optim, training

BASES = [
    *(layers.Layer, layers.Chain, layers.Parametric, layers.Activation, layers.Branches),
    *(losses.Loss, optim.Optimizer, optim.Schedule, initializers.Initializer),
]
OPTIMISERS = [*optim.optimizers.__all__, *optim.whole_data.__all__, *optim.second_order.__all__]
TOPICS = {  # title -> module that the names are read from, names, introduction
    "Models": (cnn, ["Sequential", "Ensemble", "load", "clip_grad_norm", "gradcheck"], "A model is a list of layers."),
    "Layers": (cnn, layers.__all__, "A `Sequential` compiles its layers; each layer also runs standalone."),
    "Losses": (cnn, losses.__all__, "Pass a loss as the last layer of a `Sequential`, or call it directly."),
    "Optimisers": (cnn, OPTIMISERS, "Pass an optimiser to a `Sequential` as `optimizer=`."),
    "Schedules": (cnn, optim.schedules.__all__, "Pass a schedule to an optimiser as `schedule=`."),
    "Training": (cnn, training.__all__, "Callbacks, data sources, metrics and results of `Sequential.fit`."),
    "Estimators": (
        cnn.sklearn,
        cnn.sklearn.__all__,
        "`cnn.sklearn`: classifiers and regressors with scikit-learn's interface.",
    ),
    "Initialisers": (
        initializers,
        initializers.__all__,
        "Pass an initialiser to a layer as `weight_init=` or `bias_init=`.",
    ),
    "Functions on arrays": (
        functional,
        [name for name, f in vars(functional).items() if getattr(f, "__module__", "") == functional.__name__],
        "The kernels as functions on NumPy arrays, without a model.",
    ),
    "Base classes": (None, BASES, "Base classes, with the methods that all layers, losses or optimisers share."),
}


def topics():
    """title -> (introduction, [(name in full, object)]); "Everything else" has what no other topic names."""
    found = {}
    for title, (module, names, introduction) in TOPICS.items():
        objects = names if module is None else [getattr(module, n) for n in names if not n.startswith("_")]
        prefix = "" if module is None else module.__name__ + "."
        found[title] = (
            introduction,
            [
                (f"{one.__module__}.{one.__qualname__}" if module is None else prefix + one.__name__, one)
                for one in objects
            ],
        )
    named = {name for _, several in found.values() for name, _ in several}
    others = [(f"cnn.{name}", getattr(cnn, name)) for name in cnn.__all__ if f"cnn.{name}" not in named]
    found["Export and configuration"] = (
        "Conversion to and from other libraries; threads; information about the build.",
        [(name, one) for name, one in others if not inspect.ismodule(one)],
    )
    return found


def members(cls):
    """Names of the public methods and properties that the page of a class shows: its own, not those of its base."""
    base = next((base for base in cls.__mro__[1:] if base in BASES), object)
    shown = []
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        ours = inspect.isfunction(function) and function.__module__.partition(".")[0] == "cnn"
        documented = ours and function.__doc__ and "\n" in function.__doc__.strip()
        if not name.startswith("_") and documented and inspect.getattr_static(base, name, None) is not member:
            shown.append((name, "autoproperty" if isinstance(member, property) else "automethod"))
    return shown


def page(name, one):
    """The page of a class or a function, as reStructuredText."""
    short = name.rpartition(".")[2]
    lines = [short, "=" * len(short), ""]
    if not inspect.isclass(one):
        return [*lines, f".. autofunction:: {name}", ""]
    lines += [f".. autoclass:: {name}", ""]
    for member, directive in members(one):
        lines += [f"   .. {directive}:: {member}", ""]
    base = next((base for base in one.__mro__[1:] if base in BASES), None)
    if base is not None:
        lines += [f"Shared methods and attributes: :py:class:`~{base.__module__}.{base.__qualname__}`.", ""]
    return lines


def first_line(one):
    """The summary of a docstring, as reStructuredText."""
    return inspect.getdoc(one).partition("\n\n")[0].replace("\n", " ").replace("`", "``").replace("````", "``")


def write(folder):
    """Write index.rst, and a page for each topic and each name, into a folder."""
    (folder / "names").mkdir(parents=True, exist_ok=True)
    files = {title: title.lower().replace(" ", "-") for title in topics()}
    index = ["API reference", "=============", "", "Every public name, by topic.", ""]
    index += [".. toctree::", "   :hidden:", "", *(f"   {file}" for file in files.values()), ""]
    index += [".. list-table::", "   :widths: 25 75", ""]
    for title, (introduction, several) in topics().items():
        file = files[title]
        names = ", ".join(f":py:{'class' if inspect.isclass(one) else 'func'}:`~{name}`" for name, one in several)
        index += [f"   * - :doc:`{title} <{file}>`", f"     - {introduction.replace('`', '``')} {names}"]
        lines = [title, "=" * len(title), "", introduction.replace("`", "``"), ""]
        lines += [".. list-table::", "   :widths: 30 70", ""]
        for name, one in several:
            role = "class" if inspect.isclass(one) else "func"
            lines += [f"   * - :py:{role}:`~{name}`", f"     - {first_line(one)}"]
            (folder / "names" / f"{name}.rst").write_text("\n".join(page(name, one)))
        lines += ["", ".. toctree::", "   :hidden:", "", *(f"   names/{name}" for name, _ in several), ""]
        (folder / f"{file}.rst").write_text("\n".join(lines))
    (folder / "index.rst").write_text("\n".join(index) + "\n")
