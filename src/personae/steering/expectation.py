"""`Expectation`: what the opinion model expects somebody to answer, known to the steerer without the opinion model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from personae.people.new_questions import NewQuestions
from personae.people.spread import beyond, normal_points


class Expectation(nn.Module):
    """Option logits of people and questions, by the opinion model's read-outs.

    Parameters
    ----------
    intercepts, slopes : Tensor (Q, K), (Q, K, D)
        Read-outs of the Q questions that are learned from, -inf beyond a question's own options.
    typical : Tensor (D, D)
        Covariance of the people for whom the read-outs are calibrated.
    new : NewQuestions
        Read-outs of others.
    """

    intercepts: Tensor
    slopes: Tensor
    typical: Tensor

    def __init__(self, intercepts: Tensor, slopes: Tensor, typical: Tensor, new: NewQuestions) -> None:
        super().__init__()
        self.register_buffer("intercepts", intercepts)
        self.register_buffer("slopes", slopes)
        self.register_buffer("typical", typical)
        self.new = new

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Expectation:
        """What `state_dict` gave."""
        new = {name.removeprefix("new."): value for name, value in state.items() if name.startswith("new.")}
        return cls(state["intercepts"], state["slopes"], state["typical"], NewQuestions.from_state(new))

    def roots(self, covariances: np.ndarray) -> Tensor:
        """Of what covariances (P, D, D) have beyond the typical one, (P, D, D); see `personae.people.spread.beyond`."""
        found = beyond(covariances, self.typical.double().cpu().numpy())
        return torch.as_tensor(found, dtype=self.slopes.dtype, device=self.slopes.device)

    def forward(
        self, vectors: Tensor, h: Tensor, n_options: list[int], known: Tensor, roots: Tensor | None = None
    ) -> Tensor:
        """Logits (C, N, K) of people (N, D) or (C, N, D), -inf beyond a question's own options.

        Parameters
        ----------
        h : Tensor (C, F)
            Representations of the questions.
        known : int Tensor (C,)
            Their numbers among the Q learned from, or -1.
        roots : Tensor (N, D, D) or (C, N, D, D), optional
            R R' is how far people may be from their vectors; probabilities are then the mean over N(vector, R R'), by
            the points of the opinion model.
        """
        if roots is not None:
            points = torch.as_tensor(normal_points(vectors.shape[-1]), dtype=vectors.dtype, device=vectors.device)
            around = vectors[..., None, :] + points @ roots.transpose(-1, -2)  # (..., N, M, D)
            p = self(around.flatten(-3, -2), h, n_options, known).softmax(-1)
            return p.unflatten(1, around.shape[-3:-1]).mean(2).log()
        x = vectors if vectors.dim() == 3 else vectors.expand(len(h), -1, -1)
        logits = x.new_full((*x.shape[:2], max(n_options)), float("-inf"))
        asked, new = (known >= 0).nonzero()[:, 0], (known < 0).nonzero()[:, 0]
        if len(asked):
            own = self.intercepts[known[asked], None] + x[asked] @ self.slopes[known[asked]].transpose(1, 2)
            k = min(own.shape[-1], logits.shape[-1])
            logits[asked, :, :k] = own[..., :k]
        if len(new):
            found = self.new(x[new], h[new], [n_options[c] for c in new.tolist()])
            logits[new, :, : found.shape[-1]] = found
        return logits

    def of_everything(self, vectors: Tensor) -> Tensor:
        """Logits (..., Q, K) of people (..., D) for all questions that are learned from."""
        return self.intercepts + torch.einsum("...d,qkd->...qk", vectors, self.slopes)
