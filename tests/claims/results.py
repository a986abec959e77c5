"""Made-up results in which LyaNet is better by a gain in everything, or worse."""

from robustness.claims.models import MODELS
from robustness.claims.results import Horizon, SeedResults
from robustness.results.leaderboard import Proportion

RIVALS = ("node", "continuousnet", "resnet")


def results(gain: float) -> list[SeedResults]:
    """Three complete seeds; a gain above 0 is in LyaNet's favour."""
    return [_seed(seed, gain) for seed in (1, 2, 3)]


def _seed(seed: int, gain: float) -> SeedResults:
    def share(name: str, base: int) -> Proportion:
        return Proportion.of(base + seed + (0 if name in RIVALS else int(100 * gain)), 1000)

    def level(name: str) -> float:
        return 0.5 + 0.001 * seed - (0 if name in RIVALS else 0.5 * gain)

    odes = ("node", "lyanet")
    table = {name: share(name, 800) for name in MODELS}
    protocols = [f"{units} {t}" for t in ("linf 8/255", "l2 127/255") for units in UNITS]
    return SeedResults(
        seed=seed,
        recipes="none",
        clean=table,
        horizon={
            name: Horizon(
                time=[0.0, 0.5, 1.0],
                potential=[2.3, 0.5, 0.01],
                accuracy=[0.1, 0.9, 0.95],
                reached={"0.9": level(name), "0.99": level(name)},
            )
            for name in odes
        },
        nfe={t: {name: 40 * level(name) for name in odes} for t in ("0.001", "1e-05")},
        cost={
            f"{what}: back-propagation, 8 rk4 steps": 1 - gain + 0.001 * seed
            for what in ("step", "epoch")
        },
        robust={
            **dict.fromkeys(protocols, table),
            "wide linf 0.1": table,
            "short linf 0.1": {name: table[name] for name in odes},
        },
    )


UNITS = ("paper", "pixels")
