from __future__ import annotations

from personae.report.figures import plot_training


def test_the_training_curve_is_the_history():
    history = [{"step": 50, "loss": 2.0, "nll": 0.9, "accuracy": 0.5}, {"step": 100, "loss": 1.5, "nll": 0.8}]
    loss, nll, accuracy = plot_training(history).data
    assert (tuple(loss.x), tuple(loss.y)) == ((50, 100), (2.0, 1.5))
    assert tuple(nll.y) == (0.9, 0.8)
    assert (tuple(accuracy.x), tuple(accuracy.y), accuracy.yaxis) == ((50,), (0.5,), "y2")


def test_no_history_is_an_empty_figure():
    assert plot_training([]).data == ()
