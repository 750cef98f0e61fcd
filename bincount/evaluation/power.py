"""How large a difference a comparison of two models can detect at all."""

from statistics import NormalDist

POWER = 0.8  # by convention (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988)


def smallest_detectable(standard_error: float, confidence: float) -> float | None:
    """Return the smallest true gain that is found significant with a probability of POWER; None without any error.

    That is (z_{1 - alpha/2} + z_POWER) times the standard error of the gain, with alpha = 1 - confidence: the minimum
    detectable effect of Bloom, Minimum Detectable Effects (Evaluation Review 19(5), 1995). At 95 % it is 2.80 times.
    """
    if standard_error == 0:
        return None
    quantile = NormalDist().inv_cdf
    return (quantile((1 + confidence) / 2) + quantile(POWER)) * standard_error
