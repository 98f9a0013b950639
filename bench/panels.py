"""A figure with one panel for each name, all of the same scales, and one legend for all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOST_COLUMNS = 6


@contextmanager
def panels(
    names: Sequence[str], file: Path, *, title: str, x_label: str, y_label: str
) -> Iterator[dict[str, Any]]:
    """Yields Matplotlib's axes by name. What was drawn on them is written to a PNG file afterwards.

    The legend has the labels of the first panel's curves, if they are several.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(_MOST_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(2.4 * columns, 2 * lines + 0.5),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    # A label of the whole figure would be drawn over by the legend.
    for panel in axes.flat[max(0, len(names) - columns) : len(names)]:
        panel.tick_params(labelbottom=True)
        panel.set_xlabel(x_label)
    by_name = dict(zip(names, axes.flat, strict=False))
    for name, panel in by_name.items():
        panel.set_title(name, fontsize=9)
    yield by_name
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.supylabel(y_label)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
