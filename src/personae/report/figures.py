"""The figure of a training; those of people and cohorts are in `personae.people`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personae.people.figures import COLOURS, go, styled

_LINES = {
    "loss": ("training loss", "y", ".3f"),
    "nll": ("NLL, held-out people", "y", ".3f"),
    "accuracy": ("accuracy, held-out people", "y2", ".1%"),
}


def plot_training(history: Sequence[Mapping[str, float]]) -> go.Figure:
    """Loss, and what held-out people's answers say, against training steps.

    Parameters
    ----------
    history : sequence of dict
        ``history_`` of a steerer: step, loss, nll, accuracy; one a validation.

    Examples
    --------
    >>> figure = plot_training([{"step": 50, "loss": 2.0, "nll": 0.9, "accuracy": 0.6}])
    >>> [line.name for line in figure.data]
    ['training loss', 'NLL, held-out people', 'accuracy, held-out people']
    """
    figure = go.Figure()
    for (key, (name, axis, form)), colour in zip(_LINES.items(), COLOURS, strict=False):
        points = [h for h in history if key in h]
        if points:
            figure.add_scatter(
                x=[h["step"] for h in points],
                y=[h[key] for h in points],
                yaxis=axis,
                name=name,
                mode="lines+markers",
                line={"color": colour},
                hovertemplate=f"step %{{x}}: %{{y:{form}}}<extra></extra>",
            )
    return styled(
        figure,
        height=420,
        xaxis={"title": "training steps", "anchor": "y2"},
        yaxis={"domain": [0.45, 1]},
        yaxis2={"domain": [0, 0.38], "tickformat": ".0%"},
    )
