"""Figures of cohorts, for notebooks and the report: Plotly, and no cell of fewer than ten people."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from personae.data.survey import Question
from personae.people.profiles import Profiles

try:
    import plotly.graph_objects as go
except ImportError as error:
    raise ImportError("figures need plotly, which is not installed; run: pip install 'personae[report]'") from error

# Told apart by colour-blind readers too, on white and on black
COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#ee7733", "#009988", "#7766cc", "#886644", "#99aa55", "#dd88bb"),
)
GREY = "#8a8f98"


# the choice of k -------------------------------------------------------------------------------------------------
def plot_choice(curves: pd.DataFrame, k: int, minimum: int) -> go.Figure:
    """The curves by which the number of cohorts was chosen: see `Cohorts.plot_choice`."""
    figure = go.Figure()
    lines = {
        "score = elbow x stability": curves.score.where(curves.score >= 0),
        "elbow": curves.elbow,
        "stability": curves.stability,
        "error, share of one cohort's": curves.reconstruction / (curves.reconstruction.iloc[0] or 1.0),
    }
    for (name, line), colour, dash in zip(lines.items(), COLOURS, ("solid", "dot", "dash", "dashdot"), strict=False):
        figure.add_scatter(
            x=curves.k,
            y=line,
            mode="lines+markers",
            name=name,
            line={"color": colour, "dash": dash, "width": 3 if dash == "solid" else 1.5},
            customdata=[n if n >= minimum else f"of fewer than {minimum}" for n in curves.smallest],
            hovertemplate="k = %{x}: %{y:.2f}, smallest cohort %{customdata} people<extra></extra>",
        )
    figure.add_vline(x=k, line={"color": GREY, "width": 1}, annotation_text=f"k = {k}")
    return styled(
        figure, height=360, xaxis={"title": "number of cohorts k", "dtick": 1}, yaxis={"range": [-0.02, 1.08]}
    )


# one cohort ------------------------------------------------------------------------------------------------------
def plot_profile(profiles: Profiles, cohort: int, name: str, questions: Sequence[Question] = ()) -> go.Figure:
    """A cohort's telling answers and traits beside everybody's: see `Cohorts.plot_profile`."""
    title = {q.id: q.title or q.id for q in questions}
    answers, traits = profiles.telling_answers(cohort), profiles.standing_out(cohort)
    labels = [f"{title.get(q, q)}: {o}" for q, o in zip(answers.question, answers.option, strict=True)]
    labels += [f"{t}: {v}" for t, v in zip(traits.trait, traits.value, strict=True)]
    cells = pd.concat([answers, traits], ignore_index=True)
    y = -np.arange(len(cells), dtype=float) - (np.arange(len(cells)) >= len(answers))  # a gap before the traits
    figure = go.Figure()
    shared = {"y": y, "mode": "markers", "text": [as_text(t) for t in labels]}
    figure.add_scatter(
        x=cells.population_share,
        name="everybody",
        marker={"color": GREY, "symbol": "line-ns", "size": 9, "line": {"color": GREY, "width": 3}},
        hovertemplate="%{text}<br>everybody %{x:.0%}<extra></extra>",
        **shared,
    )
    figure.add_scatter(
        x=cells.share,
        name=name,
        marker={"color": COLOURS[cohort % len(COLOURS)], "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": cells.high - cells.share,
            "arrayminus": cells.share - cells.low,
        },
        customdata=cells[["low", "high", "count", "n"]],
        hovertemplate="%{text}<br>"
        + name
        + " %{x:.0%} (%{customdata[0]:.0%} to %{customdata[1]:.0%}), "
        + "%{customdata[2]:,.0f} of %{customdata[3]:,.0f} people<extra></extra>",
        **shared,
    )
    for at, words in zip(y, labels, strict=True):  # above its line, as beside it there is no room on a telephone
        left = {"x": 0, "xref": "paper", "xanchor": "left", "yshift": 15}
        figure.add_annotation(y=at, text=shortened(words, 44), showarrow=False, **left)
    return styled(
        figure,
        height=120 + 38 * (len(cells) + 1),
        margin={"l": 10, "r": 10, "t": 50, "b": 50},
        xaxis={"range": [-0.02, 1.02], "tickformat": ".0%", "title": "share of people (95 % intervals)"},
        yaxis={"range": [y.min(initial=0) - 0.5, 0.9], "visible": False},
    )


# cohorts by question ---------------------------------------------------------------------------------------------
def plot_questions(profiles: Profiles, questions: Sequence[Question] = (), most: int = 30) -> go.Figure:
    """Cohorts x the questions that divide them most: see `Cohorts.plot_questions`."""
    splitting = profiles.splitting
    chosen = splitting.question[~splitting.suppressed].head(most)
    away = profiles.mean_differences().loc[chosen]  # (q, k)
    z = away.to_numpy(dtype=float)
    about = {q.id: q for q in questions}
    label = [about[q].title or q if q in about else q for q in chosen]
    ends = [f"{about[q].options[0]} … {about[q].options[-1]}" if q in about else "" for q in chosen]
    widest = float(np.nanmax(np.abs(z), initial=0.0)) or 1.0
    # Towards nothing in the middle, so that it suits a page of any colour
    scale = [[0, "rgba(68,119,170,.85)"], [0.5, "rgba(68,119,170,0)"], [0.5, "rgba(238,102,119,0)"]]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=np.arange(z.shape[1]),
            y=np.arange(z.shape[0]),
            zmin=-widest,
            zmax=widest,
            colorscale=[*scale, [1, "rgba(238,102,119,.85)"]],
            text=np.where(np.isnan(z), "·", np.char.mod("%+.0f", 100 * np.nan_to_num(z))),
            texttemplate="%{text}",
            textfont={"size": 10},
            customdata=[[as_text(f"{a} ({e})" if e else a)] * z.shape[1] for a, e in zip(label, ends, strict=True)],
            hovertemplate="%{customdata}<br>cohort-%{x}: %{z:+.2f}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": "towards the last option", "side": "right"},
                "thickness": 10,
            },
        )
    )
    plain = {"showgrid": False, "zeroline": False}
    return styled(
        figure,
        height=120 + 24 * len(z),
        xaxis={
            "tickvals": np.arange(z.shape[1]),
            "ticktext": [f"cohort-{c}" for c in away.columns],
            "side": "top",
            **plain,
        },
        yaxis={
            "tickvals": np.arange(len(z)),
            "ticktext": [shortened(t, 44) for t in label],
            "autorange": "reversed",
            **plain,
        },
    )


# style -----------------------------------------------------------------------------------------------------------
def styled(figure: go.Figure, height: int, **layout: object) -> go.Figure:
    """One look for all figures."""
    figure.update_layout(
        template="none",
        height=height,
        font={"size": 12},
        margin={"l": 40, "r": 10, "t": 60, "b": 50},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    figure.update_layout(layout)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def as_text(words: object) -> str:
    """Words of users as text: Plotly takes some tags for markup."""
    return escape(" ".join(str(words).split()), quote=False)


def shortened(words: str, most: int) -> str:
    """The same, of at most so many characters."""
    words = " ".join(words.split())
    return as_text(words if len(words) <= most else words[: most - 1].rstrip() + "…")
