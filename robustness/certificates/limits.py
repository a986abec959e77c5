"""What limits a radius, as one word: the vocabulary of tables and statistics."""

from enum import StrEnum


class Limit(StrEnum):
    """The part of the model or of the proof that keeps a radius from being larger."""

    ENCODER = "encoder"
    FIELD = "field"
    HORIZON = "horizon"
    ROUNDING = "rounding"
    NORM = "l2 ball"
    BUDGET = "budget"
    CONFIDENCE = "confidence"
    PREDICTION = "prediction"
    OTHER = "other"


MEANINGS: dict[Limit, str] = {
    Limit.ENCODER: "the bound of what an encoder and the layers behind it do to a perturbation",
    Limit.FIELD: "the vector field: its slack, or how far its steps let trajectories part",
    Limit.HORIZON: "the horizon ends before the potential has fallen further",
    Limit.ROUNDING: "the margin is within what float32 rounding may take",
    Limit.NORM: "the detour from the ℓ∞ ball through the ℓ2 ball around it",
    Limit.BUDGET: "the search for a proof ran out of its budget",
    Limit.CONFIDENCE: "the number of random samples, or an abstention",
    Limit.PREDICTION: "the prediction is wrong or failed, so there is nothing to certify",
    Limit.OTHER: "something else; the reason says what",
}
