"""What `make demo` says of its runs (the runs themselves are `make demo`'s own)."""

import pytest

from experiments import demo


def summary(values, finite=(True, True, True)):
    """Three seeds at beta 1, of which every metric has these values, and worse at 9."""
    tags = {claim.tag: claim.sign for claim in demo.CLAIMS}
    return {
        "members": [
            {
                "beta": beta,
                "finite": is_finite,
                "metrics": {tag: sign * (v - beta) for tag, sign in tags.items()},
            }
            for beta in (1.0, 9.0)
            for v, is_finite in zip(values, finite, strict=True)
        ]
    }


def verdicts(better, worse):
    """Of one claim; a higher value is better, by its sign."""
    claim = demo.CLAIMS[0]
    found = {model: summary((1.0, 2.0, 3.0)) for model in demo.MODELS}
    found |= {claim.better: better, claim.worse: worse}
    return demo.judge(found)[0]


@pytest.mark.parametrize(
    ("values", "holds", "z"),
    # Of a difference with standard error sqrt(2 / 3): 2.1, 1.7 and -2.1 of them.
    [((2.7, 3.7, 4.7), True, 2.1), ((2.4, 3.4, 4.4), False, 1.7)]
    + [((-0.7, 0.3, 1.3), False, -2.1)],
)
def test_a_claim_holds_from_two_standard_errors_on(values, holds, z):
    _, found, numbers = verdicts(summary(values), summary((1.0, 2.0, 3.0)))
    assert found is holds
    assert numbers.endswith(f", {z:+.1f} SE")


def test_a_claim_of_one_seed_does_not_hold():
    alone = summary((9.0, 9.0, 9.0), (True, False, False))
    claim, holds, numbers = verdicts(alone, summary((1.0, 2.0, 3.0)))
    assert claim == demo.CLAIMS[0] and not holds
    assert numbers == "no beta at which two seeds are finite"
